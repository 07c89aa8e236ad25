// SPDX-License-Identifier: Apache-2.0

// Ticks: after a number of switches a worker checks its inbox, and its timers and event source if they are due.
//
// Invariants:
//   * A tick has at most `longest` switches, and fewer if fibers compute for long between them. A yield can afford no more than a counter
//     of switches (reading the time counter takes as long as several yields), so the length of a tick adapts to the duration of the
//     previous one.
//   * Timers and event source are checked after the tick in which half a millisecond has passed since the last check.
// Owner worker only.

import CFiber

package struct Tick: BitwiseCopyable {
    /// Switches left in this tick.
    var left = firstLength
    /// The number of switches with which the tick began.
    var length = firstLength
    /// The time counter when the tick began.
    var began: UInt64 = 0
    /// The time counter after the last check of the event source.
    var lastPoll: UInt64 = 0
    /// Switches left, over several ticks, until fibers at the front of the queue must go behind all others.
    var frontLeft = longest

    package static var longest: Int32 { 64 }
    /// The length of the first tick, and of the first tick after a sleep, when nothing is known about its fibers. It is short because each
    /// fiber may compute for milliseconds. Most sleeps are followed by fewer switches than that, and then the tick costs nothing.
    package static var firstLength: Int32 { 4 }

    /// The number of switches with which a tick would take about as long as the interval between checks of timers and event source,
    /// judging by the previous tick. It at most doubles.
    ///
    /// - Parameters:
    /// - used: switches in the previous tick.
    /// - elapsed: the duration of that tick; `interval` is the wanted duration. Both in units of the time counter.
    package static func length(after used: Int32, taking elapsed: UInt64, of interval: UInt64) -> Int32 {
        let used = max(1, used)
        // Most ticks take a thousandth of the interval, so they avoid the division.
        if _fastPath(elapsed <= interval / 2) { return min(used &* 2, longest) }
        return Int32(max(1, min(UInt64(used) &* interval / elapsed, UInt64(longest))))
    }

    /// Marks the next tick as the first one after a sleep.
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

    /// Ends the tick: checks the inbox, and timers and event source if they are due, and begins the next tick.
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
        // The root delivers messages, and is queued like a fiber.
        if _slowPath(pointee.mailbox.hasMessages && !pointee.mailbox.isRootQueued) {
            pointee.mailbox.isRootQueued = true
            pointee.ready.append(pointee.root)
        }
        if isPollDue(at: counter) {
            poll(timeout: 0)
            // The fiber keeps its state and never continues. A fiber that has ended only has to report its end.
            if _slowPath(pointee.ending.abandonAt != .max && isOverdue), running.id != 0 { cfiber_switch(pointee.root) }
        }
    }

    /// Begins a tick of the maximum length, for tests in which no tick may end.
    package func beginLongestTick() {
        pointee.tick.length = Tick.longest
        pointee.tick.left = pointee.tick.length
        pointee.tick.began = counter
    }

    /// True if fibers that were started at the front have run before all others for so long that the others are due at the end of this
    /// tick.
    var isFrontDue: Bool { pointee.tick.frontLeft <= pointee.tick.length &- pointee.tick.left }

    @inline(__always)
    var isPollDue: Bool { isPollDue(at: counter) }

    @inline(__always)
    func isPollDue(at counter: UInt64) -> Bool { counter &- pointee.tick.lastPoll >= cfiber_counter_interval() }
}
