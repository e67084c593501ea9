"""Networks of other libraries as members, read from the files that these libraries write.

Nothing is fetched from a hub, and no code that comes with weights is run. Each library is imported when a manifest
names it.
"""
