"""Generation token by token: who advances at each step, and which token comes next.

Decoder        the door, the thread, drain and close: what a lease hands to a job
  Scheduler    one step: the gone leave, the waiting join, part of a prompt is read, all who run gain a token
    WaitingQueue, Slots, PrefixCache, choosing, BeamSearch
sequence       what a job asks for and is told
"""
