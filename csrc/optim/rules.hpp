// Every rule, once: a new one is a file in rules/ and a word here.
#pragma once

#include "optim/rules/adam.hpp"
#include "optim/rules/sgd.hpp"

#define SP_RULES(X) X(Sgd) X(SgdMomentum) X(Adam) X(AmsGrad)
