"""The measurements that claims are made from."""
