// SPDX-License-Identifier: Apache-2.0

// The numbers that a worker gives: ids of fibers, epochs of records, and random ones. Owner worker only.

import CFiber

struct NumberSource: BitwiseCopyable {
    /// The fibers' ids that are left of a block that is this worker's.
    private var nextID: UInt64 = 0
    private var endOfIDs: UInt64 = 0
    private var epochBase: UInt64 = 0
    /// What the next random number is made of.
    private var random: UInt64

    private static var idsAtATime: UInt64 { 1024 }

    /// - Parameter seed: nil for random numbers that differ from run to run.
    init(seed: UInt64?) { random = seed ?? cfiber_counter() }

    /// An id that is unique in the process: workers count in blocks, and each takes the next block when it needs one.
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

    /// Epochs of a record that is made anew start where no earlier record's have been: 2^31 parks apart, which lasts for 2^30 records.
    mutating func takeEpochs() -> UInt64 {
        epochBase &+= 1 << 34
        return epochBase
    }

    /// Even enough to be fair by, without a system call.
    mutating func randomNumber(below limit: UInt32) -> UInt32 { nextRandomNumber(&random, below: limit) }
}
