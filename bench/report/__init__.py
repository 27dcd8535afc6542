"""python -m bench.report: tables, pictures and one page of a folder of result documents."""
