"""What guests are started with: an initramfs for the small image and a disk for the full one."""
