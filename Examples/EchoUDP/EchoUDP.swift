// SPDX-License-Identifier: Apache-2.0

// A UDP echo server: one fiber, which receives what is there in one system call and sends it back in another.

import FiberNet
import Fibers

@main
struct EchoUDP {
    static func main() {
        let options = Options.parse(CommandLine.arguments.dropFirst())
        do {
            try FiberRuntime.run { try serve(options) }
        } catch {
            fail("\(error)", status: 1)
        }
    }

    static func serve(_ options: Options) throws {
        let socket = try DatagramSocket.bind(to: options.address)
        let signals = try Signals.of(.interrupt, .terminate)
        // Room for the largest datagrams; what is not used of it is address space and no memory.
        let batch = DatagramBatch(capacity: 64, datagramSize: 65_536)
        var (datagrams, bytes) = (0, 0)
        printNow("listening on \(socket.address)")

        try withFiberGroup { group in
            try group.spawnDaemon(name: "signals") {
                printNow("\(try signals.next()): ending")
                socket.close()
            }
            do {
                while true {
                    try socket.receiveBatch(into: batch)
                    try sendBack(batch, on: socket)
                    datagrams += batch.count
                    for i in 0..<batch.count { bytes += batch.info(at: i).byteCount }
                }
            } catch let error as IOError where error.code == .closed {}
        }
        printNow("served \(datagrams) datagrams, \(bytes) bytes")
    }

    /// One sender who cannot be answered is no reason to leave the others without an answer.
    static func sendBack(_ batch: DatagramBatch, on socket: DatagramSocket) throws {
        var first = 0
        while first < batch.count {
            do {
                return try socket.sendBatch(batch, from: first)
            } catch let error as IOError where error.code != .closed {
                printNow("an answer was not sent: \(error)")
                first += error.datagramsTransferred + 1
            }
        }
    }
}
