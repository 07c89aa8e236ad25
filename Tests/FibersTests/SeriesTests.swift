// SPDX-License-Identifier: Apache-2.0

// Power series as networks of fibers (M. D. McIlroy, "Squinting at power series", 1990): the coefficients of a series are a stream, made only when they are asked for, and
// operations on series are fibers between streams. Series that are defined by themselves are networks with cycles, which nothing but cancellation ends.

import Fibers
import Testing

private struct Rational: Hashable, Sendable, CustomStringConvertible {
    let numerator: Int
    let denominator: Int

    init(_ numerator: Int, _ denominator: Int = 1) {
        var (divisor, rest) = (abs(denominator), abs(numerator))
        while rest != 0 { (divisor, rest) = (rest, divisor % rest) }
        if denominator < 0 { divisor = -divisor }
        (self.numerator, self.denominator) = (numerator / divisor, denominator / divisor)
    }

    static func + (a: Rational, b: Rational) -> Rational {
        Rational(a.numerator * b.denominator + b.numerator * a.denominator, a.denominator * b.denominator)
    }
    static func * (a: Rational, b: Rational) -> Rational {
        // Across first, so that nothing grows that cancels.
        let (one, other) = (Rational(a.numerator, b.denominator), Rational(b.numerator, a.denominator))
        return Rational(one.numerator * other.numerator, one.denominator * other.denominator)
    }
    static prefix func - (a: Rational) -> Rational { Rational(-a.numerator, a.denominator) }

    var description: String { denominator == 1 ? "\(numerator)" : "\(numerator)/\(denominator)" }
}

/// The coefficients of a series, for one reader.
private final class Series {
    fileprivate let requests: ChannelSender<Void>
    fileprivate let terms: ChannelReceiver<Rational>

    init(_ requests: ChannelSender<Void>, _ terms: ChannelReceiver<Rational>) { (self.requests, self.terms) = (requests, terms) }

    func next() throws -> Rational {
        try requests.send(())
        guard let term = try terms.receive() else { throw CancellationError() }
        return term
    }

    func prefix(_ count: Int) throws -> [Rational] { try (0..<count).map { _ in try next() } }
}

/// Makes series, as children of a group.
private final class Network {
    let stage: Stage
    let group: FiberGroup<Void>
    let capacity: ChannelCapacity
    private(set) var channels = 0

    init(_ stage: Stage, _ group: FiberGroup<Void>, _ capacity: ChannelCapacity) {
        (self.stage, self.group, self.capacity) = (stage, group, capacity)
    }

    /// The series whose next coefficient the closure knows.
    func series(_ next: @escaping () throws -> Rational) throws -> Series {
        let (requests, asked) = stage.make(of: Void.self, capacity)
        let (terms, made) = stage.make(of: Rational.self, capacity)
        channels += 2
        try group.spawnLocal { for _ in asked { try terms.send(try next()) } }
        return Series(requests, made)
    }

    /// The same series for two readers, of whom one may be ahead. While it waits for a coefficient it still hears both: in a cycle one of them is asked by what it waits for.
    func split(_ source: Series) throws -> (Series, Series) {
        let requests = (0..<2).map { _ in stage.make(of: Void.self, capacity) }
        let outputs = (0..<2).map { _ in stage.make(of: Rational.self, capacity) }
        channels += 4
        try group.spawnLocal { [asked = requests.map(\.1), readers = outputs.map(\.0)] in
            var terms: [Rational] = []
            var sent = [0, 0]
            var wants = [false, false], isOpen = [true, true]
            var isWaiting = false
            while isOpen[0] || isOpen[1] {
                for i in 0..<2 where wants[i] && sent[i] < terms.count {
                    try readers[i].send(terms[sent[i]])
                    (sent[i], wants[i]) = (sent[i] + 1, false)
                }
                if (wants[0] || wants[1]) && !isWaiting {
                    try source.requests.send(())
                    isWaiting = true
                }
                try select {
                    if isOpen[0] && !wants[0] {
                        asked[0].onReceive {
                            wants[0] = true
                        } end: {
                            isOpen[0] = false
                        }
                    }
                    if isOpen[1] && !wants[1] {
                        asked[1].onReceive {
                            wants[1] = true
                        } end: {
                            isOpen[1] = false
                        }
                    }
                    if isWaiting {
                        source.terms.onReceive { term in
                            terms.append(term)
                            isWaiting = false
                        }
                    }
                }
            }
        }
        return (Series(requests[0].0, outputs[0].1), Series(requests[1].0, outputs[1].1))
    }

    func sum(_ f: Series, _ g: Series) throws -> Series { try series { try f.next() + g.next() } }

    func scaled(_ f: Series, by factor: Rational) throws -> Series { try series { try f.next() * factor } }

    /// x·f, with a constant in front.
    func shifted(_ f: Series, _ constant: Rational = Rational(0)) throws -> Series {
        var isFirst = true
        return try series {
            if !isFirst { return try f.next() }
            isFirst = false
            return constant
        }
    }

    /// (f₀ + x·F)·(g₀ + x·G) = f₀g₀ + x·(f₀G + g₀F + x·F·G): each coefficient needs another product, so the network grows as it runs.
    func product(_ f: Series, _ g: Series) throws -> Series {
        var rest: Series?
        var first: (Rational, Rational)?
        return try series { [unowned self] in
            guard let (f0, g0) = first else {
                first = (try f.next(), try g.next())
                return first!.0 * first!.1
            }
            if rest == nil {
                let (tail, tail2) = (try split(f), try split(g))
                rest = try sum(
                    sum(scaled(tail2.0, by: f0), scaled(tail.0, by: g0)), shifted(product(tail.1, tail2.1)))
            }
            return try rest!.next()
        }
    }

    /// A series that is defined by itself: `definition` gets one reader's copy of it.
    func fixpoint(_ definition: (Series) throws -> Series) throws -> Series {
        // The copy must be there before what it is made from.
        var whole: Series?
        let (out, back) = try split(try series { try whole!.next() })
        whole = try definition(back)
        return out
    }

    /// The antiderivative with a given constant.
    func integral(_ f: Series, _ constant: Rational = Rational(0)) throws -> Series {
        var n = 0
        return try series {
            defer { n += 1 }
            return n == 0 ? constant : try f.next() * Rational(1, n)
        }
    }

    /// 1/f = (1 - x·F·(1/f)) / f₀, for f₀ = 1.
    func reciprocal(_ f: Series) throws -> Series {
        _ = try f.next()
        return try fixpoint { try shifted(scaled(product(f, $0), by: Rational(-1)), Rational(1)) }
    }

    /// e to the power of f, for f₀ = 0: the integral of f' times itself, plus 1.
    func exponential(_ f: Series) throws -> Series {
        _ = try f.next()
        var n = 0
        let derivative = try series {
            n += 1
            return try f.next() * Rational(n)
        }
        return try fixpoint { try integral(product(derivative, $0), Rational(1)) }
    }

    /// 1 + x, or whatever coefficients are given, followed by zeros.
    func polynomial(_ coefficients: Int...) throws -> Series {
        var rest = coefficients.makeIterator()
        return try series { Rational(rest.next() ?? 0) }
    }
}

extension KernelTests {
    @Suite struct SeriesTests {
        /// The first coefficients of a series, and how many channels it took; the rest of the network is cancelled.
        private static func coefficients(
            _ kind: ChannelKind, _ capacity: ChannelCapacity, _ count: Int, _ make: (Network) throws -> Series
        ) throws -> (terms: [String], channels: Int) {
            try FiberRuntime.run {
                try withFiberGroup { group in
                    let network = Network(Stage(kind: kind, workers: 1), group, capacity)
                    let terms = try make(network).prefix(count)
                    group.cancel()
                    return (terms.map(\.description), network.channels)
                }
            }
        }

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func exponentialSeries_hasItsCoefficients(kind: ChannelKind, capacity: ChannelCapacity) throws {
            let (terms, channels) = try Self.coefficients(kind, capacity, 20) { try $0.exponential($0.polynomial(0, 1)) }
            var factorials = [1]
            for n in 1..<20 { factorials.append(factorials[n - 1] * n) }
            #expect(terms == factorials.map { Rational(1, $0).description })
            #expect(channels > 150)
        }

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func sine_hasItsCoefficients(kind: ChannelKind, capacity: ChannelCapacity) throws {
            // sin = ∫(1 - ∫sin)
            let (terms, _) = try Self.coefficients(kind, capacity, 10) { network in
                try network.fixpoint { try network.integral(network.scaled(network.integral($0, Rational(-1)), by: Rational(-1))) }
            }
            #expect(terms == ["0", "1", "0", "-1/6", "0", "1/120", "0", "-1/5040", "0", "1/362880"])
        }

        @Test(arguments: ChannelKind.allCases, [ChannelCapacity.rendezvous, .bounded(1)])
        func tangent_hasItsCoefficients(kind: ChannelKind, capacity: ChannelCapacity) throws {
            // tan = ∫(1 + tan²)
            let (terms, channels) = try Self.coefficients(kind, capacity, 12) { network in
                try network.fixpoint { tangent in
                    let (one, other) = try network.split(tangent)
                    return try network.integral(network.sum(network.polynomial(1), network.product(one, other)))
                }
            }
            #expect(terms == ["0", "1", "0", "1/3", "0", "2/15", "0", "17/315", "0", "62/2835", "0", "1382/155925"])
            #expect(channels > 100)
        }

        @Test(arguments: ChannelKind.allCases)
        func squaresOfSineAndCosine_addUpToOne(kind: ChannelKind) throws {
            let (terms, _) = try Self.coefficients(kind, .rendezvous, 12) { network in
                func square(_ series: Series) throws -> Series {
                    let (one, other) = try network.split(series)
                    return try network.product(one, other)
                }
                let sine = try network.fixpoint {
                    try network.integral(network.scaled(network.integral($0, Rational(-1)), by: Rational(-1)))
                }
                let (one, other) = try network.split(sine)
                let cosine = try network.scaled(network.integral(one, Rational(-1)), by: Rational(-1))
                return try network.sum(square(other), square(cosine))
            }
            #expect(terms == ["1"] + [String](repeating: "0", count: 11))
        }

        @Test(arguments: ChannelKind.allCases)
        func reciprocals_countUp(kind: ChannelKind) throws {
            // 1 / (1 - x)² = 1 + 2x + 3x² + …
            let (terms, _) = try Self.coefficients(kind, .rendezvous, 10) { network in
                try network.reciprocal(network.product(network.polynomial(1, -1), network.polynomial(1, -1)))
            }
            #expect(terms == (1...10).map { "\($0)" })
        }

        @Test(arguments: ChannelKind.allCases)
        func networkWithoutCycles_endsByItself_whenNobodyReads(kind: ChannelKind) throws {
            let terms = try FiberRuntime.run {
                try withFiberGroup { group in
                    let network = Network(Stage(kind: kind, workers: 1), group, .rendezvous)
                    return try network.product(network.polynomial(1, 1), network.polynomial(1, 1)).prefix(4)
                }
            }
            #expect(terms.map(\.description) == ["1", "2", "1", "0"])
        }
    }
}
