// SPDX-License-Identifier: Apache-2.0

// Whether, and for how long, an idle worker spins before it sleeps. If work from other workers has recently arrived soon after it went
// idle, then sleeping and being woken takes longer than waiting for that work, and costs both sides a system call.
//
// Where threads share a CPU, a thread that spins keeps the other from producing the very thing that it spins for. So spinning pays only if
// nearly every spin succeeds. It therefore has a budget, the credit:
//   * a successful spin earns 1, a fruitless one costs `costOfVainSpin`, and without credit the worker does not spin;
//   * the credit comes back after another worker has woken this one soon after it fell asleep, as many times as `wakesToSpin` requires.
//     That number doubles each time the credit runs out.
// Owner worker only.

import CFiber

struct Spinning: BitwiseCopyable {
    /// Spin budget. A fruitless spin costs 16 times what a successful one earns.
    private var credit: Int32 = 0
    /// The average time from the wake-up call of another worker until this worker runs, by the time counter.
    private var wakeLatency = Int64(cfiber_counter_interval() / 16)
    /// The number of early wake-ups (soon after falling asleep) that are required before the worker spins again, and how many of them are
    /// still missing.
    private var wakesToSpin: (wanted: Int32, missing: Int32) = (1, 1)

    private static var mostCredit: Int32 { 64 }
    private static var costOfVainSpin: Int32 { 16 }
    private static var mostWakesToSpin: Int32 { 1024 }
    /// The longest spin in nanoseconds: half of the interval at which a busy worker polls event source and timers.
    static var longest: Int64 { 250_000 }

    @inline(__always) var hasCredit: Bool { credit > 0 }

    /// The time limit of a spin, by the time counter. Somewhat longer than a wake-up takes, because the other side may itself have just
    /// been woken. Spinning for as long as the avoided wake-up would take costs at most twice the optimum (A. Karlin et al., "Competitive
    /// randomized algorithms for non-uniform problems", 1990).
    var limit: Int64 {
        let interval = Int64(cfiber_counter_interval())
        return min(max(wakeLatency * 3 / 2, interval / 32), interval / 2)
    }

    /// Called when something arrived during a spin.
    mutating func noteSuccess() {
        credit += 1
        if credit >= Self.mostCredit {
            credit = Self.mostCredit
            wakesToSpin = (1, 1)
        }
    }

    /// Called when a spin ended without success.
    mutating func noteFailure() {
        credit -= Self.costOfVainSpin
        if credit <= 0 {
            credit = 0
            let wanted = min(wakesToSpin.wanted &* 2, Self.mostWakesToSpin)
            wakesToSpin = (wanted, wanted)
        }
    }

    /// Called when another worker has woken this one.
    ///
    /// - Parameters:
    ///   - sent: the time counter when the other worker made the wake-up call.
    ///   - time: the time from falling asleep to that call.
    @inline(never)
    mutating func noteWake(sent: UInt64, after time: Int64) {
        // The call was made before this sleep: a stale time, written late by a slow sender.
        guard time >= 0 else { return }
        let latency = Int64(min(cfiber_counter() &- sent, cfiber_counter_interval()))
        wakeLatency += (latency - wakeLatency) / 8
        guard time < limit else { return }
        // A spin would have sufficed.
        wakesToSpin.missing &-= 1
        if wakesToSpin.missing <= 0 {
            credit = Self.mostCredit / 2
            wakesToSpin.missing = wakesToSpin.wanted
        }
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Spins on the inbox, and on the condition that a fiber waits for, for about as long as a wake-up takes. True if something has
    /// arrived.
    @inline(__always)
    func spin(every pause: Int = 1, until hasCome: () -> Bool = { false }) -> Bool {
        // Something that is there already says nothing about how long a spin would have taken, so it earns no credit.
        if hasCome() || !pointee.inbox.isEmpty { return true }
        let begun = cfiber_counter()
        let limit = UInt64(pointee.spinning.limit)
        var left = pause
        repeat {
            for _ in 0..<16 {
                left -= 1
                if left == 0 { left = pause }
                if left == pause && hasCome() || !pointee.inbox.isEmpty {
                    pointee.spinning.noteSuccess()
                    return true
                }
                cfiber_relax()
            }
        } while cfiber_counter() &- begun < limit
        pointee.spinning.noteFailure()
        return false
    }

    /// True if the running fiber may spin: no other fiber is ready, and spins have recently succeeded.
    @inline(__always)
    var maySpin: Bool { pointee.spinning.hasCredit && mayPause }

    /// True if no other fiber on this worker is ready, no poll is due, and every worker has a CPU of its own.
    @inline(__always)
    var mayPause: Bool { pointee.ready.isEmpty && pointee.workers.maySpin && !isPollDue }
}
