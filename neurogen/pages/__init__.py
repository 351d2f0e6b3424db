"""How results look: HTML pages, charts, and displays in notebooks.

Measures nothing; every number on a page comes from `diagnosis`, `text` or `training`.
"""
