"""What people do with their account by mail: set a forgotten password, verify an address, accept an invitation."""
