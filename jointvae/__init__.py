"""JointVAE: disentangled joint continuous and discrete representations (Dupont 2018), derived and reproduced."""

__version__ = "0.1.0"
