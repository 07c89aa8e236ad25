// SPDX-License-Identifier: Apache-2.0

// Ticks: after so many switches a worker looks at the world, that is its inbox, and timers and event source when their time has come.
//
// Invariants:
//   * a tick is at most `longest` switches, and fewer where fibers compute for long between them. A counter of switches is all that a yield can afford (the time counter takes as long as
//     several yields), so the length of a tick adapts to what the one before took;
//   * timers and event source are looked at after the tick in which half a millisecond has passed since the last look.
// Owner worker only.

import CFiber

package struct Tick: BitwiseCopyable {
    /// Switches left.
    var left = firstLength
    /// How many it began with.
    var length = firstLength
    /// What the time counter showed when it began.
    var began: UInt64 = 0
    /// What the time counter showed after the last look at the event source.
    var lastPoll: UInt64 = 0
    /// Switches left, of several ticks, until fibers that were put before all others go behind them.
    var frontLeft = longest

    package static var longest: Int32 { 64 }
    /// The length of the first tick, and of the first after a sleep, when nothing is known of the fibers that will run in it. Short, because fibers may compute for
    /// milliseconds each; most sleeps are followed by fewer switches than that, and then the tick costs nothing.
    package static var firstLength: Int32 { 4 }

    /// How many switches a tick may have so that it takes about as long as the interval at which the worker looks at timers and event source, judging by the tick before. It grows by twice at most.
    ///
    /// - Parameters:
    ///   - used: switches in the tick before.
    ///   - elapsed: how long that took, and `interval` how long it should take, by the time counter.
    package static func length(after used: Int32, taking elapsed: UInt64, of interval: UInt64) -> Int32 {
        let used = max(1, used)
        // Most ticks take a thousandth of the interval: they pay no division.
        if _fastPath(elapsed <= interval / 2) { return min(used &* 2, longest) }
        return Int32(max(1, min(UInt64(used) &* interval / elapsed, UInt64(longest))))
    }

    /// The next tick is the first after a sleep.
    mutating func noteSleep() {
        length = min(length, Self.firstLength)
        left = length
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    @inline(__always)
    func endTickIfDue() {
        pointee.tick.left &-= 1
        if _slowPath(pointee.tick.left <= 0) { endTick() }
    }

    /// Begins the next tick, and looks at the world in between.
    @inline(never)
    func endTick() {
        let used = pointee.tick.length &- pointee.tick.left
        let counter = counter
        pointee.tick.length = Tick.length(after: used, taking: counter &- pointee.tick.began, of: cfiber_counter_interval())
        pointee.tick.left = pointee.tick.length
        pointee.tick.began = counter
        pointee.tick.frontLeft &-= used
        if pointee.tick.frontLeft <= 0 {
            pointee.tick.frontLeft = Tick.longest
            pointee.ready.endFront()
        }
        collectInbox()
        // Messages are for the root, which takes its turn like a fiber.
        if _slowPath(pointee.mailbox.hasMessages && !pointee.mailbox.isRootQueued) {
            pointee.mailbox.isRootQueued = true
            pointee.ready.append(pointee.root)
        }
        if isPollDue(at: counter) {
            poll(timeout: 0)
            // The fiber stays as it is, with all that it owns, and never goes on. One whose life is over only has to say so.
            if _slowPath(pointee.ending.abandonAt != .max && isOverdue), running.id != 0 { cfiber_switch(pointee.root) }
        }
    }

    /// Begins a tick of the longest length, for tests in which no tick may end.
    package func beginLongestTick() {
        pointee.tick.length = Tick.longest
        pointee.tick.left = pointee.tick.length
        pointee.tick.began = counter
    }

    /// True when the fibers that started now have run before all others for so long that the others are due at the end of this tick.
    var isFrontDue: Bool { pointee.tick.frontLeft <= pointee.tick.length &- pointee.tick.left }

    @inline(__always)
    var isPollDue: Bool { isPollDue(at: counter) }

    @inline(__always)
    func isPollDue(at counter: UInt64) -> Bool { counter &- pointee.tick.lastPoll >= cfiber_counter_interval() }
}
