"""The shell over a VFS. To be read in this order: ``language`` makes a script of a text, and
``expansion`` arguments of its words.
"""
