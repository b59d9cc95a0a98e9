"""The node: the privileged part of a host, which makes sandboxes and owns their files, apart from the server that faces
the network. They speak over sockets that the server inherits, in messages that leave no choice of paths."""
