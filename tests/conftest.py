"""The process that runs the tests makes mounts of its own, as the server does, before it has any thread."""

import os

from cupola.sandbox.oci.installations import enter_private_mount_namespace

if os.geteuid() == 0:
    enter_private_mount_namespace()
