"""The shell over a VFS. To be read in this order: ``language`` makes a script of a text, and
``expansion`` arguments of its words. ``streams`` is what commands read and write, ``command`` what
one is, ``session`` runs scripts of them, and ``commands`` has them all; ``views`` is how they show
data. ``interactive`` is the prompt, ``pictures`` are for the documentation.
"""
