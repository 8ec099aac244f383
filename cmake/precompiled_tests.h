// What every test includes (option SHARDTUNE_CLEAN_BUILD).
#pragma once

#include <gtest/gtest.h>

#include "cmake/precompiled_standard.h"
