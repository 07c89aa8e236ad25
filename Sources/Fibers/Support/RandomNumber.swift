// SPDX-License-Identifier: Apache-2.0

// Random numbers that are uniform enough for fairness, without a system call. The caller owns the state.

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), truncated to 32 bits and scaled below the limit
/// by a multiplication.
func nextRandomNumber(_ state: inout UInt64, below limit: UInt32) -> UInt32 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return UInt32(truncatingIfNeeded: ((z >> 32) &* UInt64(limit)) >> 32)
}
