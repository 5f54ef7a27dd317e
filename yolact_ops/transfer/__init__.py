"""Transfer files to this machine: downloads, S3, unpacking archives, checks of disk space."""
