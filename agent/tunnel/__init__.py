"""HBONE: HTTP/2 CONNECT streams over mutual TLS, one tunnel for many connections of one pair of identities.

frames      bytes -> frames, and the few frames we write (pure; hostile bytes)
headers     header blocks of CONNECT and its answer (pure; hostile bytes)
stream      a CONNECT stream, and what can happen on a tunnel (values)
negotiation what h2 does for it: preface, SETTINGS, PING (pure; hostile bytes)
sending     the half of a core that others act on: streams it opens and ends, credit it gives (pure)
core        one HTTP/2 connection that carries nothing but CONNECT streams (pure; hostile bytes)
owner       who is told what happens on a tunnel
link        a core, its TLS and its socket in the relay
handshake   TCP and TLS up to a link
credentials the certificates that both ends show, and the roots they trust
pool        which link carries a new connection
"""
