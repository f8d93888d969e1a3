#include "core/recording.hpp"

SP_BEGIN

bool Recording::possible(const Stream&) { return false; }
void Recording::record(const Stream&, const std::function<void(const Stream&)>&) {}
void Recording::replay(const Stream&) const {}
void Recording::clear() {}

SP_END
