// SPDX-License-Identifier: Apache-2.0

// Answers kept for a while: a dictionary whose entries are linked in the order of their use, so that all operations take constant time. Whoever holds the lock of the resolver.

struct NameCache {
    private struct Entry {
        let query: NameQuery
        var answer: NameAnswer
        /// In nanoseconds of the resolver's clock.
        var expires: Int64
        /// Neighbours in `entries`; the least recently used is the last.
        var newer: Int?
        var older: Int?
    }

    private var places: [NameQuery: Int] = [:]
    private var entries: [Entry] = []
    private var newest: Int?
    private var oldest: Int?
    private let capacity: Int

    init(capacity: Int) { self.capacity = capacity }

    /// Those that have expired included, until somebody asks for them.
    var count: Int { entries.count }

    /// The answer, if there is one that has not expired; it is then the most recently used.
    mutating func answer(to query: NameQuery, at now: Int64) -> NameAnswer? {
        guard let place = places[query] else { return nil }
        guard now < entries[place].expires else {
            remove(place)
            return nil
        }
        unlink(place)
        linkAsNewest(place)
        return entries[place].answer
    }

    mutating func store(_ answer: NameAnswer, for query: NameQuery, until expires: Int64) {
        guard capacity > 0 else { return }
        if let place = places[query] { remove(place) }
        if entries.count == capacity, let oldest { remove(oldest) }
        entries.append(Entry(query: query, answer: answer, expires: expires))
        places[query] = entries.count - 1
        linkAsNewest(entries.count - 1)
    }

    mutating func removeAll() { self = NameCache(capacity: capacity) }

    private mutating func remove(_ place: Int) {
        unlink(place)
        places[entries[place].query] = nil
        // The last one moves into the gap.
        let last = entries.count - 1
        if place != last {
            let (newer, older) = (entries[last].newer, entries[last].older)
            entries[place] = entries[last]
            places[entries[place].query] = place
            if let newer { entries[newer].older = place } else { newest = place }
            if let older { entries[older].newer = place } else { oldest = place }
        }
        entries.removeLast()
    }

    private mutating func unlink(_ place: Int) {
        let (newer, older) = (entries[place].newer, entries[place].older)
        if let newer { entries[newer].older = older } else { newest = older }
        if let older { entries[older].newer = newer } else { oldest = newer }
    }

    private mutating func linkAsNewest(_ place: Int) {
        entries[place].newer = nil
        entries[place].older = newest
        if let newest { entries[newest].newer = place } else { oldest = place }
        newest = place
    }
}
