"""The evaluation of an encoder: what is asked, who answers, and where results are kept."""
