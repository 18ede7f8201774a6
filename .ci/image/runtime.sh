#!/bin/sh
# Part of the Dockerfile: a user, no file that lends its owner's rights, no installer of packages.
set -eu
echo 'splatclip:x:65532:65532:SplatCLIP:/tmp:/usr/sbin/nologin' >> /etc/passwd
echo 'splatclip:x:65532:' >> /etc/group
find / -xdev -type f -perm /6000 -exec chmod a-s {} +
if python3 -m pip --version > /dev/null 2>&1; then
  python3 -m pip uninstall --quiet --yes --root-user-action=ignore setuptools wheel pip
fi
