"""Runs the scripts of ``vm-tests/scripts`` in virtual machines, anywhere that has qemu.

The scripts are written against the interface of NixOS's test driver; this is that interface for
machines made from Debian's packages.
"""
