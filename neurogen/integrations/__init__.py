"""neurogen's samplers in other engines: one module an engine, imported by those who use that engine.

Nothing else in the package imports these modules, so that no engine has to be installed.
"""
