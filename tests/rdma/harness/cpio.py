"""Writes an initramfs: a cpio archive in the "newc" form, as the kernel unpacks it. No root and no cpio program needed."""
import os
import stat


class Archive:
    def __init__(self, path):
        self.file = open(path, "wb")
        self.inode = 0
        self.seen = set()

    def _pad(self):
        self.file.write(b"\0" * (-self.file.tell() % 4))

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        self.inode += 1
        encoded = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, device[0], device[1], len(encoded), 0)
        self.file.write(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        self._pad()
        self.file.write(data)
        self._pad()

    def _new(self, name):
        """The name without its first slash, its parents made; None when it is there already."""
        name = name.strip("/")
        if name in self.seen:
            return None
        self.seen.add(name)
        if "/" in name:
            self.directory(os.path.dirname(name))
        return name

    def directory(self, name):
        name = self._new(name)
        if name:
            self._entry(name, stat.S_IFDIR | 0o755)

    def data(self, name, data, mode=0o644):
        name = self._new(name)
        if name:
            self._entry(name, stat.S_IFREG | mode, data)

    def copy(self, name, path, mode=0o644):
        with open(path, "rb") as source:
            self.data(name, source.read(), mode)

    def link(self, name, target):
        name = self._new(name)
        if name:
            self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name, major, minor):
        name = self._new(name)
        if name:
            self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def close(self):
        self._entry("TRAILER!!!", 0)
        self.file.close()
