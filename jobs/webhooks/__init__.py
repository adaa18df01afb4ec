"""Webhooks: messages to other programs about jobs, by the Standard Webhooks form.

The transaction of an event adds a row for each webhook that it concerns (outbox).  Servers send the rows afterwards:
at least once, and always with the row's id as `webhook-id`, by which a receiver drops repeats.

    subscriptions    the webhooks: create, change, remove        outbox    which event is a message for which webhook
    messages         the body and the signature of a message     targets   the check of an address, and the request
    sender           the loop of a server that sends what is due
"""
