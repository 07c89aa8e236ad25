// SPDX-License-Identifier: Apache-2.0

// The numbers that a worker issues: fiber ids, epochs of records, and random numbers. Owner worker only.

import CFiber

struct NumberSource: BitwiseCopyable {
    /// The remaining fiber ids of this worker's block.
    private var nextID: UInt64 = 0
    private var endOfIDs: UInt64 = 0
    private var epochBase: UInt64 = 0
    /// The state of the random number generator.
    private var random: UInt64

    private static var idsAtATime: UInt64 { 1024 }

    /// - Parameter seed: nil for random numbers that differ from run to run.
    init(seed: UInt64?) { random = seed ?? cfiber_counter() }

    /// An id that is unique in the process: each worker takes a block of ids when it needs one, and counts within it.
    @inline(__always)
    mutating func takeID() -> UInt64 {
        if _slowPath(nextID == endOfIDs) {
            nextID = Holders.takeIDs(Self.idsAtATime)
            endOfIDs = nextID &+ Self.idsAtATime
        }
        let id = nextID
        nextID = id &+ 1
        return id
    }

    /// The epochs of a new record start beyond those of all earlier records: 2^31 parks apart, which suffices for 2^30 records.
    mutating func takeEpochs() -> UInt64 {
        epochBase &+= 1 << 34
        return epochBase
    }

    /// Uniform enough for fairness, without a system call.
    mutating func randomNumber(below limit: UInt32) -> UInt32 { nextRandomNumber(&random, below: limit) }
}
