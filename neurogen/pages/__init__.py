"""How results look: HTML pages, charts, and what a notebook shows.

Measures nothing; every number on a page comes from `diagnosis`, `text` or `training`.
"""
