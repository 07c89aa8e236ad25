// SPDX-License-Identifier: Apache-2.0

// What becomes of written bytes, and of the peer, when a stream is closed or reset.

import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct UndeliveredTests {
        /// Bytes that fit into the writer's kernel buffer and not into the reader's: some wait for a reader.
        private static let response = pattern(200_000)

        private func pairWithAResponseUnderWay(_ net: Net) throws -> (client: Connection, server: Connection) {
            let (client, server) = try net.pair()
            try client.setOption(.receiveBufferSize, to: 16 * 1024)
            try server.setOption(.sendBufferSize, to: 400_000)
            try withTimeout(.seconds(10)) { try server.writeAll(Self.response) }
            return (client, server)
        }

        @Test(arguments: Transport.tcp)
        func close_losesWhatIsOnItsWay_whenInputIsUnread_overTCP(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try pairWithAResponseUnderWay(net)
                try client.writeAll("nobody reads this")
                try server.waitReadable()
                server.close()
                var received: [UInt8] = []
                let error = expect(.reset) { while case let bytes = try client.read(upTo: 65_536), !bytes.isEmpty { received += bytes } }
                expect(error?.errno == .connectionReset)
                expect(received.count < Self.response.count && same(received, Array(Self.response.prefix(received.count))))
            }
        }

        @Test func close_delivers_andThePeerThenReadsAReset_whenInputIsUnread_onAUnixStream() throws {
            try withNet(.unix) { net in
                let (client, server) = try net.pair()
                try server.writeAll("written")
                try client.writeAll("nobody reads this")
                server.close()
                expect(try client.readExactly(7) == Array("written".utf8))
                expect(.reset) { _ = try client.read(upTo: 1) }
                expect(try client.read(upTo: 1).isEmpty)
            }
        }

        @Test(arguments: Transport.all)
        func close_deliversAll_whenNoInputIsUnread(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try pairWithAResponseUnderWay(net)
                server.close()
                expect(same(try client.readToEnd(), Self.response))
            }
        }

        /// What the documentation of `close` advises.
        @Test(arguments: Transport.all)
        func allIsDelivered_whenTheOtherHalfIsReadToItsEndBeforeTheClose(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try pairWithAResponseUnderWay(net)
                try client.writeAll("nobody needs this")
                let ending = try Fiber.spawnLocal {
                    try server.shutdown(.write)
                    while try server.readAvailable({ _ in }) {}
                    server.close()
                }
                expect(same(try client.readToEnd(), Self.response))
                client.close()
                try ending.join()
            }
        }

        @Test(arguments: Transport.tcp)
        func reset_losesWhatIsOnItsWay_overTCP(transport: Transport) throws {
            try withNet(transport) { net in
                let (client, server) = try pairWithAResponseUnderWay(net)
                server.reset()
                var received: [UInt8] = []
                expect(.reset) { while case let bytes = try client.read(upTo: 65_536), !bytes.isEmpty { received += bytes } }
                expect(received.count < Self.response.count)
            }
        }

        @Test func reset_isACleanEnd_onAUnixStream() throws {
            try withNet(.unix) { net in
                let (client, server) = try net.pair()
                try server.writeAll("written")
                server.reset()
                expect(!server.isOpen)
                expect(try client.readToEnd() == Array("written".utf8))
            }
        }
    }
}
