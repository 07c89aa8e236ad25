// SPDX-License-Identifier: Apache-2.0

// Messages of 256 KB and 1 MB, whose type is known where they are sent: what is inlined there is not made anew for them. If it were, optimised builds of this file would take minutes and more.

#if compiler(>=6.2)
    import Fibers
    import Testing

    private typealias Quarter = InlineArray<262_144, UInt8>
    private typealias Megabyte = InlineArray<1_048_576, UInt8>

    private func first(_ message: borrowing Quarter) -> Int { Int(message[0]) + Int(message[message.count - 1]) }
    private func first(_ message: borrowing Megabyte) -> Int { Int(message[0]) + Int(message[message.count - 1]) }

    /// The frames of unoptimised code have several copies of a message.
    private let roomy = FiberRuntime.Configuration(workers: 1, stackSize: 256 << 20)

    extension KernelTests {
        @Suite struct LargeMessageTests {
            @Test func largeMessage_comesThroughChannels() throws {
                var sum = 0
                try FiberRuntime.run(roomy) {
                    let (sender, receiver) = makeChannel(of: Quarter.self, .bounded(2))
                    try sender.send(Quarter(repeating: 1))
                    #expect(sender.trySend(Quarter(repeating: 2)) == .sent)
                    if let message = try receiver.receive() { sum += first(message) }
                    if let message = try receiver.receive() { sum += first(message) }
                    let (near, nearby) = makeLocalChannel(of: Megabyte.self, .unbounded)
                    var message: Megabyte? = Megabyte(repeating: 3)
                    try near.send(moving: &message)
                    try near.send(Megabyte(repeating: 4))
                    near.close()
                    for message in nearby { sum += first(message) }
                }
                #expect(sum == 2 * (1 + 2 + 3 + 4))
            }

            @Test func largeMessage_comesThroughSelect() throws {
                var sum = 0
                try FiberRuntime.run(roomy) {
                    let (sender, receiver) = makeChannel(of: Quarter.self, .bounded(1))
                    let (near, nearby) = makeLocalChannel(of: Megabyte.self, .bounded(1))
                    for _ in 0..<2 {
                        try select {
                            sender.onSend(Quarter(repeating: 1)) {}
                            near.onSend(Megabyte(repeating: 1)) {}
                        }
                    }
                    for _ in 0..<2 {
                        try select {
                            receiver.onReceive { sum += first($0) }
                            nearby.onReceive { sum += first($0) }
                        }
                    }
                }
                #expect(sum == 4)
            }

            @Test func largeMessage_comesThroughTheOthers() throws {
                var sum = 0
                try FiberRuntime.run(roomy) {
                    let (reply, answer) = makeOneShot(of: Megabyte.self)
                    reply.send(Megabyte(repeating: 1))
                    sum += first(try answer.receive())
                    let (localReply, localAnswer) = makeLocalOneShot(of: Quarter.self)
                    localReply.send(Quarter(repeating: 2))
                    sum += first(try localAnswer.receive())
                    let (changes, watcher) = makeWatch(Megabyte(repeating: 0))
                    changes.send(Megabyte(repeating: 3))
                    if let message = try watcher.changed() { sum += first(message) }
                    let broadcast = makeBroadcast(of: Quarter.self, capacity: 2, .dropOldest)
                    let subscriber = broadcast.subscribe()
                    try broadcast.send(Quarter(repeating: 4))
                    broadcast.trySend(Quarter(repeating: 5))
                    if let message = try subscriber.receive() { sum += first(message) }
                    if let message = subscriber.next() { sum += first(message) }
                    let once = FiberOnce { Quarter(repeating: 6) }
                    sum += first(try once.value)
                    if let value = once.valueIfMade { sum += first(value) }
                }
                #expect(sum == 2 * (1 + 2 + 3 + 4 + 5 + 6 + 6))
            }
        }
    }
#endif
