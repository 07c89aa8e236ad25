// SPDX-License-Identifier: Apache-2.0

// Several datagrams at once: how many, in which order, what is left when one of them cannot go, and in which memory.

import CFaults
import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct DatagramBatchTests {
        @Test(arguments: Transport.all)
        func batch_getsWhatIsThere_inOrder(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                let batch = DatagramBatch(capacity: 16, datagramSize: 100)
                for count in [1, 2, 7, 10] {
                    for i in 0..<count { try client.send([UInt8](repeating: UInt8(i), count: i)) }
                    expect(try server.receiveBatch(into: batch) == count && batch.count == count)
                    for i in 0..<count {
                        expect(batch[i].bytes == [UInt8](repeating: UInt8(i), count: i))
                        expect(batch[i].sender == client.address && batch.info(at: i).byteCount == i)
                        expect(batch.withBytes(at: i) { $0.withUnsafeBytes { Array($0) } } == batch[i].bytes)
                    }
                }
                // None is left, and none is made up.
                expect(.timedOut) { _ = try withTimeout(.zero) { try server.receiveBatch(into: batch) } }
                expect(batch.count == 0, "what was in it before is gone")
            }
        }

        @Test(arguments: Transport.all)
        func batch_getsNoMore_thanItHasRoomFor_orWasAskedFor(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                let batch = DatagramBatch(capacity: 4, datagramSize: 1)
                for i in 0..<10 { try client.send([UInt8(i)]) }
                expect(try server.receiveBatch(into: batch, max: 3) == 3)
                expect((0..<3).map { batch[$0].bytes } == [[0], [1], [2]])
                expect(try server.receiveBatch(into: batch) == 4 && batch.isFull)
                expect((0..<4).map { batch[$0].bytes } == [[3], [4], [5], [6]])
                expect(try server.receiveBatch(into: batch, max: 100) == 3 && !batch.isFull)
                expect((0..<3).map { batch[$0].bytes } == [[7], [8], [9]])
            }
        }

        @Test(arguments: Transport.all)
        func eachDatagram_tellsWhetherItIsTruncated_andByWhom(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), first = try net.client(of: server), second = try net.client(of: server)
                let batch = DatagramBatch(capacity: 8, datagramSize: 10)
                // Twice, since the batch must forget the shorter ones before.
                for _ in 0..<2 {
                    try first.send(letters(11))
                    try second.send(letters(10))
                    try first.send([])
                    try second.send(letters(500))
                    expect(try server.receiveBatch(into: batch) == 4)
                    let all = (0..<4).map { batch[$0] }
                    expect(all.map(\.length) == [11, 10, 0, 500] && all.map(\.isTruncated) == [true, false, false, true])
                    expect(all.map(\.bytes.count) == [10, 10, 0, 10] && all[3].bytes == Array(letters(500).prefix(10)))
                    expect(all.map(\.sender) == [first.address, second.address, first.address, second.address])
                }
            }
        }

        @Test(arguments: Transport.all)
        func receivedBatch_goesBackToItsSenders(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver()
                let clients = try (0..<5).map { _ in try net.receiver() }
                let batch = DatagramBatch(capacity: 8, datagramSize: 100)
                for (i, client) in clients.enumerated() { try client.send("question \(i)", to: server.address) }
                expect(try server.receiveBatch(into: batch) == 5)
                try server.sendBatch(batch)
                for (i, client) in clients.enumerated() {
                    let answer = try client.receive(upTo: 100)
                    expect(answer.bytes == Array("question \(i)".utf8) && answer.sender == server.address)
                }
                expect(batch.count == 5 && batch.info(at: 4).sender == clients[4].address, "sending leaves it as it is")
            }
        }

        @Test(arguments: Transport.all)
        func composedBatch_goesWhereEachDatagramIsAddressed(transport: Transport) throws {
            try withNet(transport) { net in
                let sender = try net.receiver()
                let receivers = try (0..<3).map { _ in try net.receiver() }
                try sender.connect(to: receivers[0].address)
                let batch = DatagramBatch(capacity: 3, datagramSize: 20)
                for _ in 0..<2 {
                    try batch.append(Array("peer".utf8))
                    try batch.append(letters(20).span.bytes, to: receivers[1].address)
                    try batch.append([], to: receivers[2].address)
                    expect(batch.isFull && batch[1].bytes == letters(20) && batch[1].sender == receivers[1].address)
                    try sender.sendBatch(batch)
                    expect(try receivers[0].receive(upTo: 100).bytes == Array("peer".utf8))
                    expect(try receivers[1].receive(upTo: 100).bytes == letters(20))
                    expect(try receivers[2].receive(upTo: 100).length == 0)
                    batch.removeAll()
                    expect(batch.count == 0)
                }
                // Nothing to send is sent at once.
                try sender.sendBatch(batch)
                sender.close()
                expect(.closed) { try sender.sendBatch(batch) }
            }
        }

        @Test func largestBatch_isSentAndReceived() throws {
            try withNet(.ipv4) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                try server.setOption(.receiveBufferSize, to: 4_000_000)
                let batch = DatagramBatch(capacity: 1024, datagramSize: 2), back = DatagramBatch(capacity: 1024, datagramSize: 2)
                for i in 0..<1024 { try batch.append([UInt8(i >> 8), UInt8(i & 255)]) }
                try client.sendBatch(batch)
                var next = 0
                while next < 1024 {
                    let count = try withTimeout(.seconds(20)) { try server.receiveBatch(into: back) }
                    for i in 0..<count {
                        expect(back[i].bytes == [UInt8(next >> 8), UInt8(next & 255)], "datagram \(next)")
                        next += 1
                    }
                }
                expect(next == 1024)
            }
        }

        // Half way.

        @Test(arguments: Transport.all)
        func failedBatch_saysHowManyWent_andGoesOnBehindTheOneThatFailed(transport: Transport) throws {
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                if transport == .unix { try client.setOption(.sendBufferSize, to: 32_768) }
                let tooLarge = pattern(70_000)
                let batch = DatagramBatch(capacity: 8, datagramSize: 70_000)
                for i in 0..<3 { try batch.append([UInt8(i), 0, 0]) }
                try batch.append(tooLarge, to: server.address)
                try batch.append([4])
                try batch.append(tooLarge)
                try batch.append([6])

                let first = expect(.tooLarge) { try client.sendBatch(batch) }
                expect(first?.datagramsTransferred == 3 && first?.bytesTransferred == 9, "\(String(describing: first))")
                expect(first?.operation == "send to" && first?.subject == server.address.description)
                expect(first?.description.contains("after 3 datagrams") == true)
                let second = expect(.tooLarge) { try client.sendBatch(batch, from: 4) }
                expect(second?.datagramsTransferred == 1 && second?.bytesTransferred == 1 && second?.subject == nil)
                let third = expect(.tooLarge) { try client.sendBatch(batch, from: 5) }
                expect(third?.datagramsTransferred == 0 && third?.bytesTransferred == 0)
                try client.sendBatch(batch, from: 6)

                let received = DatagramBatch(capacity: 8, datagramSize: 10)
                expect(try server.receiveBatch(into: received) == 5)
                expect((0..<5).map { received[$0].bytes.first } == [0, 1, 2, 4, 6])
            }
        }

        @Test func batch_saysHowManyWent_whenTheTimeIsOver() throws {
            for isConnected in [true, false] {
                try withNet(.unix) { net in
                    let full = try FullReceiver(net, isConnected: isConnected)
                    try full.receiveAll()
                    let batch = DatagramBatch(capacity: 100, datagramSize: 10)
                    for i in 0..<100 { try batch.append([UInt8(i)], to: isConnected ? nil : full.receiver.address) }
                    let error = failure(writing: { written in
                        try withTimeout(.milliseconds(5)) { try full.sender.sendBatch(batch, written: &written) }
                    })
                    expect(error?.code == .timedOut, "\(String(describing: error))")
                    let count = try #require(error).written
                    expect(count > 0 && count < 100, "\(count)")
                    // The rest, while somebody receives, arrives behind it.
                    let rest = try Fiber.spawnLocal { try full.sender.sendBatch(batch, from: count) }
                    for i in 0..<100 { expect(try full.receiver.receive(upTo: 10).bytes == [UInt8(i)]) }
                    try rest.join()
                }
            }
        }

        @Test(arguments: [true, false])
        func batch_saysHowManyWent_whenItsFiberIsCancelled(isConnected: Bool) throws {
            try withNet(.unix) { net in
                let full = try FullReceiver(net, isConnected: isConnected)
                try full.receiveAll()
                // Waits for the news that there is room.
                try full.send("first")
                expect(try full.receiver.receive(upTo: 10).bytes == Array("first".utf8))
                let batch = DatagramBatch(capacity: 100, datagramSize: 10)
                for i in 0..<100 { try batch.append([UInt8(i)], to: isConnected ? nil : full.receiver.address) }
                let error = try end(.cancel, writing: { try full.sender.sendBatch(batch, written: &$0) })
                let count = try #require(error).written
                expect(count > 0 && count < 100, "\(count)")
                for i in 0..<count { expect(try withTimeout(.zero) { try full.receiver.receive(upTo: 10) }.bytes == [UInt8(i)]) }
                expect(.timedOut) { _ = try withTimeout(.zero) { try full.receiver.receive(upTo: 10) } }
            }
        }

        @Test(arguments: Transport.tcp)
        func batchToAPortWhereNobodyIs_throwsRefused_inTheNextCallAtTheLatest(transport: Transport) throws {
            try withNet(transport) { net in
                let gone = try net.receiver(), client = try net.client(of: gone)
                gone.close()
                let batch = DatagramBatch(capacity: 10, datagramSize: 10)
                for i in 0..<10 { try batch.append([UInt8(i)]) }
                let errors = [
                    failure { try client.sendBatch(batch) }, failure { _ = try withTimeout(.zero) { try client.receive(upTo: 1) } },
                ]
                expect(errors.contains { $0?.code == .refused }, "\(errors)")
                expect(client.isOpen)
            }
        }

        @Test func append_refusesWhatIsLongerThanTheBatchsDatagrams() throws {
            try inRuntime {
                let batch = DatagramBatch(capacity: 2, datagramSize: 5)
                try batch.append(letters(5))
                let error = expect(.tooLarge) { try batch.append(letters(6)) }
                expect(error?.operation == "append" && error?.subject?.contains("6 bytes") == true)
                expect(batch.count == 1 && batch[0].bytes == letters(5))
            }
        }

        // Memory.

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: Transport.tcp)
        func echoInBatches_allocatesNothing(transport: Transport) throws {
            let rounds = 1000
            var count = -1
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                let batch = DatagramBatch(capacity: 16, datagramSize: 100), questions = DatagramBatch(capacity: 16, datagramSize: 100)
                let answers = DatagramBatch(capacity: 16, datagramSize: 100)
                for i in 0..<16 { try questions.append(letters(i)) }
                let echo = try Fiber.spawnLocal {
                    do {
                        while true {
                            try server.receiveBatch(into: batch)
                            try server.sendBatch(batch)
                        }
                    } catch let error as IOError where error.code == .closed {}
                }
                func round() throws {
                    try client.sendBatch(questions)
                    var missing = 16
                    while missing > 0 { missing -= try client.receiveBatch(into: answers) }
                }
                for _ in 0..<10 { try round() }
                cfaults_allocations_begin()
                for _ in 0..<rounds { try round() }
                count = Int(cfaults_allocations_end())
                server.close()
                try echo.join()
            }
            #expect(count == 0, "in \(rounds) rounds")
        }

        @Test(.enabled(if: cfaults_available() != 0, "sanitizers interpose malloc themselves"), arguments: Transport.tcp)
        func receivingIntoMemoryAndSending_allocateNothing(transport: Transport) throws {
            let rounds = 1000
            var count = -1
            try withNet(transport) { net in
                let server = try net.receiver(), client = try net.client(of: server)
                let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 100, alignment: 1)
                defer { memory.deallocate() }
                let question = letters(50)
                let echo = try Fiber.spawnLocal {
                    do {
                        while true {
                            try server.receiveAvailable { bytes, info in try server.send(bytes, to: info.sender!) }
                        }
                    } catch let error as IOError where error.code == .closed {}
                }
                func round() throws {
                    try client.send(question)
                    _ = try client.receive(into: memory)
                }
                for _ in 0..<10 { try round() }
                cfaults_allocations_begin()
                for _ in 0..<rounds { try round() }
                count = Int(cfaults_allocations_end())
                server.close()
                try echo.join()
            }
            #expect(count == 0, "in \(rounds) rounds")
        }

        // Misuse.

        #if compiler(>=6.2)
            @Test func batchInUse_stopsTheProgram_whenAnotherFiberUsesIt() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try inRuntime {
                            let (first, second) = try DatagramSocket.pair()
                            let batch = DatagramBatch(capacity: 2, datagramSize: 10)
                            try Fiber.spawnLocal { try first.receiveBatch(into: batch) }
                            letOthersRun()
                            try second.sendBatch(batch)
                        }
                    }
                }
                expectMessage(result, "give each fiber one of its own")
            }

            @Test func memoryBeyondMeasure_stopsTheProgram_withARemedy() async throws {
                let batch = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    _ = DatagramBatch(capacity: 1024, datagramSize: 1 << 30)
                }
                expectMessage(batch, "make it for fewer")
                let datagram = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        try inRuntime { _ = try DatagramSocket.pair().0.receive(upTo: .max) }
                    }
                }
                expectMessage(datagram, "give it the length")
            }

            @Test func fullBatch_stopsTheProgram_whenMoreIsAppended() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        let batch = DatagramBatch(capacity: 1, datagramSize: 10)
                        try batch.append([1])
                        try batch.append([2])
                    }
                }
                expectMessage(result, "look at isFull, and send it first")
            }
        #endif
    }
}
