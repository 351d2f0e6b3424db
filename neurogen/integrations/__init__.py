"""neurogen's samplers inside other people's engines: one module an engine, imported by whoever uses that engine.

Nothing else in the package imports these modules, so that no engine has to be installed.
"""
