"""`smartspec selftest`: on this machine and with this pair, is the text right, and what does speculation bring?"""
