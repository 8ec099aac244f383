// The translation unit that precompiled headers are made for (option SHARDTUNE_CLEAN_BUILD).
