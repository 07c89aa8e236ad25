// SPDX-License-Identifier: Apache-2.0

// Whether, and for how long, a worker that has nothing to do looks on before it sleeps: to sleep and to be woken takes longer than what it waits for where something has come from another
// worker soon lately, and costs both sides a system call.
//
// Where threads share a CPU, a thread that spins keeps the other from doing what it spins for. So spinning pays only where nearly every time something comes, and is on credit:
//   * something that comes earns 1, a spin in vain costs `costOfVainSpin`, and without credit the worker does not spin;
//   * the credit comes back when another worker has woken this one soon after it fell asleep, as often as `wakesToSpin` says, which doubles each time the credit runs out.
// Owner worker only.

import CFiber

struct Spinning: BitwiseCopyable {
    /// What may be spent: to spin in vain costs many times what it earns to see something come.
    private var credit: Int32 = 0
    /// What it takes from being sent for by another worker to waking up, on average, by the time counter.
    private var wakeLatency = Int64(cfiber_counter_interval() / 16)
    /// How many wakes that come soon after falling asleep it takes to spin again, and how many are missing.
    private var wakesToSpin: (wanted: Int32, missing: Int32) = (1, 1)

    private static var mostCredit: Int32 { 64 }
    private static var costOfVainSpin: Int32 { 16 }
    private static var mostWakesToSpin: Int32 { 1024 }
    /// In nanoseconds: half of the interval at which a busy worker looks at event source and timers.
    static var longest: Int64 { 250_000 }

    @inline(__always) var hasCredit: Bool { credit > 0 }

    /// For how long to spin, by the time counter: somewhat longer than it takes to be woken, since the other side may have been sent for, too, and be about to wake. To wait
    /// as long as what is to be avoided would take costs at most twice the least (A. Karlin et al., "Competitive randomized algorithms for non-uniform problems", 1990).
    var limit: Int64 {
        let interval = Int64(cfiber_counter_interval())
        return min(max(wakeLatency * 3 / 2, interval / 32), interval / 2)
    }

    /// Something has come while the worker spun.
    mutating func noteSuccess() {
        credit += 1
        if credit >= Self.mostCredit {
            credit = Self.mostCredit
            wakesToSpin = (1, 1)
        }
    }

    /// Nothing has come in time.
    mutating func noteFailure() {
        credit -= Self.costOfVainSpin
        if credit <= 0 {
            credit = 0
            let wanted = min(wakesToSpin.wanted &* 2, Self.mostWakesToSpin)
            wakesToSpin = (wanted, wanted)
        }
    }

    /// Another worker has sent for this one, and it has woken.
    ///
    /// - Parameters:
    ///   - sent: what the time counter showed when the other sent for it.
    ///   - time: how long after falling asleep that was.
    @inline(never)
    mutating func noteWake(sent: UInt64, after time: Int64) {
        // Sent for before it fell asleep: that is an old word, which came late.
        guard time >= 0 else { return }
        let latency = Int64(min(cfiber_counter() &- sent, cfiber_counter_interval()))
        wakeLatency += (latency - wakeLatency) / 8
        guard time < limit else { return }
        // To spin would have been enough.
        wakesToSpin.missing &-= 1
        if wakesToSpin.missing <= 0 {
            credit = Self.mostCredit / 2
            wakesToSpin.missing = wakesToSpin.wanted
        }
    }
}

extension UnsafeMutablePointer where Pointee == WorkerState {
    /// Looks at the inbox, and at what a fiber waits for, for as long as it takes to be woken. True when something has come.
    @inline(__always)
    func spin(every pause: Int = 1, until hasCome: () -> Bool = { false }) -> Bool {
        // What is there already says nothing of how long it would have been to wait.
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

    /// True when the running fiber may keep the worker busy with spinning: nobody else is ready, and something has come from another worker soon lately.
    @inline(__always)
    var maySpin: Bool { pointee.spinning.hasCredit && mayPause }

    /// True when nobody on this worker has anything to do, and the other workers have CPUs of their own.
    @inline(__always)
    var mayPause: Bool { pointee.ready.isEmpty && pointee.workers.maySpin && !isPollDue }
}
