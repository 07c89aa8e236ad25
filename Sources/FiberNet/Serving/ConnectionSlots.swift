// SPDX-License-Identifier: Apache-2.0

// The limit on connections of a server that serves on several workers: one count for all of them.
//
// Invariants:
//   * who finds no slot free asks for one and looks again before it waits; who gives one back hands it to a worker that asks, or adds it to those that are free and looks for
//     askers again. So either the one sees the free slot or the other the asker, and no slot is free for long while somebody asks;
//   * whoever sets `asks` to false decides: a worker that finds it false has got a slot, which it keeps or gives on.

import Fibers
import Synchronization

/// How many more connections may be served, on all workers together. Any thread.
package final class ConnectionSlots: Sendable {
    private final class Place: Sendable {
        /// True from when a worker asks for a slot until it has one, or asks no more. Who sets it to false decides which.
        let asks = Atomic(false)
        let news = FiberEvent()
    }

    private let free: Atomic<Int>
    private let places: [Place]
    /// Where the search for askers begins, each time with another worker, so that all have their turn.
    private let turn = Atomic<UInt>(0)

    package init(_ count: Int, workers: Int) {
        free = Atomic(count)
        places = (0..<workers).map { _ in Place() }
    }

    /// Takes a slot, waiting until there is one; false, and none, when `isWanted` says no meanwhile. One fiber of each worker. Parks.
    package func take(_ worker: Int, while isWanted: () -> Bool) throws -> Bool {
        if takeFree() { return true }
        let place = places[worker]
        place.asks.store(true, ordering: .sequentiallyConsistent)
        if takeFree() {
            withdraw(place)
            return true
        }
        do {
            while place.asks.load(ordering: .sequentiallyConsistent) {
                guard isWanted() else {
                    withdraw(place)
                    return false
                }
                try place.news.wait()
            }
        } catch {
            withdraw(place)
            throw error
        }
        return true
    }

    /// Lets a worker that waits in `take` ask whether the slot is still wanted.
    package func lookAgain(_ worker: Int) { places[worker].news.signal() }

    package func give() {
        repeat {
            if handOver() { return }
            free.add(1, ordering: .sequentiallyConsistent)
        } while places.contains { $0.asks.load(ordering: .sequentiallyConsistent) } && takeFree()
    }

    private func takeFree() -> Bool {
        var count = free.load(ordering: .sequentiallyConsistent)
        while count > 0 {
            let (done, now) = free.compareExchange(expected: count, desired: count - 1, ordering: .sequentiallyConsistent)
            if done { return true }
            count = now
        }
        return false
    }

    /// Ends the asking. A slot that has come by then goes on to another.
    private func withdraw(_ place: Place) {
        if !place.asks.exchange(false, ordering: .sequentiallyConsistent) { give() }
    }

    /// Gives a slot to a worker that asks for one, if there is any.
    private func handOver() -> Bool {
        let first = turn.wrappingAdd(1, ordering: .relaxed).newValue
        for i in 0..<UInt(places.count) {
            let place = places[Int((first &+ i) % UInt(places.count))]
            guard place.asks.load(ordering: .sequentiallyConsistent) else { continue }
            if place.asks.exchange(false, ordering: .sequentiallyConsistent) {
                place.news.signal()
                return true
            }
        }
        return false
    }
}
