"""Reports of comparisons and evaluations: tables, plots and pages."""
