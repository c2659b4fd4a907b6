"""Settings of this instance. They win over QUART_OTS_* variables; README lists them all.

Names go without the prefix:

    MONGODB_URL = "mongodb://user:phrase@db.example.org/quart_ots?authSource=admin"
    BCRYPT_COST = 11
"""
