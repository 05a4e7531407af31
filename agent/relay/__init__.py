"""The byte mover: one epoll set per worker, and what hangs in it. No task per connection.

loop    the epoll set, which is a worker's main loop; rounds, flushes, shared buffers
leg     an application's socket, carried by a stream of a tunnel
pair    two sockets joined without a tunnel; pipes: the kernel's, for bulk
"""
