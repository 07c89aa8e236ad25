// SPDX-License-Identifier: Apache-2.0

// Failures of groups are counted by who has failed, and not by the error: the same object may be thrown by several, and one failure may reach the group on several ways.

import Fibers
import Testing

private let shared: any Error = TestError(number: 1)

private final class ObjectError: Error, @unchecked Sendable {}
private let sharedObject: any Error = ObjectError()

extension KernelTests {
    @Suite struct GroupSameErrorTests {
        @Test func childrenThatThrowTheSameError_areCountedEach() throws {
            let errors = try runQuietly {
                [shared, sharedObject].map { error in
                    failure {
                        try withFiberGroup { group in
                            for _ in 0..<3 { try group.spawnLocal { throw error } }
                        }
                    }
                }
            }
            #expect(numbers(errors[0]) == [1, 1, 1])
            let objects = errors[1] as? FiberGroupError
            #expect(objects?.first is ObjectError && objects?.others.count == 2 && objects?.others.allSatisfy { $0 is ObjectError } == true)
        }

        @Test(arguments: [2, 4])
        func childrenOfSeveralWorkersThatThrowTheSameError_areCountedEach(_ count: Int) throws {
            let error = try onWorkers(count) {
                let latches = (0..<count).map { _ in FiberEvent() }
                return failure {
                    try withFiberGroup { group in
                        for index in 0..<count {
                            try group.spawn(on: index) {
                                withCancellationShield { try? latches[index].wait() }
                                throw shared
                            }
                        }
                        for latch in latches { latch.signal() }
                    }
                }
            }
            #expect(numbers(error) == [Int](repeating: 1, count: count))
        }

        @Test func bodyAndChildThatThrowTheSameError_areCountedBoth() throws {
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        try group.spawnLocal {
                            withCancellationShield { Fiber.yield() }
                            throw shared
                        }
                        throw shared
                    }
                }
            }
            #expect(numbers(error) == [1, 1])
        }

        @Test func childThatHasJoinedAnother_isCounted_whenItThrowsTheErrorOfAThird() throws {
            // It has had the failure of one, and passes on what it has from nobody.
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        let first = try group.spawnLocal { throw TestError(number: 2) }
                        try group.spawnLocal {
                            withCancellationShield { try? first.join() }
                            throw shared
                        }
                    }
                }
            }
            #expect(numbers(error) == [2, 1])
        }

        // Passed on.

        @Test func failureThatWasJoinedOutside_isCountedOnce_whenSeveralChildrenPassItOn() throws {
            let error = try runQuietly {
                let configuration = try Fiber.spawnLocal {
                    Fiber.yield()
                    throw shared
                }
                return failure {
                    try withFiberGroup { group in
                        for _ in 0..<4 { try group.spawnLocal { try withCancellationShield { try configuration.join() } } }
                        try withCancellationShield { try configuration.join() }
                    }
                }
            }
            #expect(numbers(error) == [1])
        }

        @Test func failureOfAChild_isCountedOnce_whenItComesByAnInnerGroup() throws {
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        let failing = try group.spawnLocal { () throws in
                            Fiber.yield()
                            throw shared
                        }
                        try group.spawnLocal {
                            try withCancellationShield {
                                try withFiberGroup { inner in
                                    try inner.spawnLocal { try failing.join() }
                                    try inner.spawnLocal { try failing.join() }
                                }
                            }
                        }
                    }
                }
            }
            #expect(numbers(error) == [1])
        }

        @Test(arguments: [2, 4])
        func failureOfAChild_isCountedOnce_whenItIsPassedOnByOtherWorkers(_ count: Int) throws {
            var errors: [[Int]?] = []
            try onWorkers(count) {
                for round in 0..<scaled(100, sanitized: 20) {
                    errors.append(
                        numbers(
                            failure {
                                try withFiberGroup { group in
                                    let failing = try group.spawn(on: 1) {
                                        for _ in 0..<round % 3 { Fiber.yield() }
                                        throw shared
                                    }
                                    for index in 0..<count {
                                        try group.spawn(on: index) { try withCancellationShield { try failing.join() } }
                                    }
                                    try withCancellationShield { try failing.join() }
                                }
                            }))
                }
            }
            #expect(errors.allSatisfy { $0 == [1] } && !errors.isEmpty, "\(errors)")
        }

        @Test func failure_isCountedOnce_whenTheFiberThatPassesItOnHasHadManyOthers() throws {
            let error = try runQuietly {
                failure {
                    try withFiberGroup { group in
                        let failing = try group.spawnLocal { throw shared }
                        try group.spawnLocal {
                            let passedOn = withCancellationShield { failure { try failing.join() } }
                            // Some are held, of others nothing is left.
                            var held: [FiberHandle<Void>] = []
                            try withCancellationShield {
                                for i in 0..<200 {
                                    let other = try Fiber.spawnLocal { throw TestError(number: i) }
                                    try? other.join()
                                    if i % 3 == 0 { held.append(other) }
                                }
                            }
                            if let passedOn { throw passedOn }
                        }
                    }
                }
            }
            #expect(numbers(error) == [1])
        }

        @Test func handleOfAFailure_isReleased_whenAFiberThatHasHadItLivesOn() throws {
            final class Witness: Error, @unchecked Sendable {
                let gone: Box<Int>
                init(_ gone: Box<Int>) { self.gone = gone }
                deinit { gone.value += 1 }
            }
            let gone = Box(0)
            var goneInTime = 0
            try runQuietly {
                for _ in 0..<100 {
                    let handle = try Fiber.spawnLocal { throw Witness(gone) }
                    do { try handle.join() } catch {}
                }
                goneInTime = gone.value
            }
            // The test library may keep the last ones that were thrown.
            #expect(goneInTime >= 50, "\(goneInTime)")
        }
    }
}
