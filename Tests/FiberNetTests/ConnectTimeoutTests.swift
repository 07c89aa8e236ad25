// SPDX-License-Identifier: Apache-2.0

// What a `TimeoutError` around connecting says was done when the time was over.

import FiberNet
import Fibers
import Testing

extension NetTests {
    struct ConnectTimeoutTests {
        /// Several addresses are tried in fibers of their own, which is nothing that the caller knows of.
        @Test(arguments: [1, 3])
        func operation_isTheConnecting_howeverManyAddressesThereAre(_ count: Int) throws {
            try withNet(.ipv4) { net in
                let (listener, _) = try fullListener(net)
                let addresses = [SocketAddress](repeating: listener.address, count: count)
                let error = thrown {
                    try withTimeout(.milliseconds(20)) {
                        defer { withCancellationShield { try? Fiber.sleep(for: .microseconds(100)) } }
                        // No attempt begins in the moment in which the time is over.
                        _ = net.keep(
                            try Connection.connect(
                                host: "example.org", port: 80, to: addresses, attemptDelay: .seconds(1_000)))
                    }
                }
                let timeout = error as? TimeoutError
                expect(timeout?.operation.hasPrefix("connect") == true, "\(String(describing: error))")
            }
        }
    }
}
