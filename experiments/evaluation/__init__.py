"""The evaluation of an encoder: the request, its execution, and the folder of results."""
