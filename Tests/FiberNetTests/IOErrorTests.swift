// SPDX-License-Identifier: Apache-2.0

// What errors say: the operation, what it was done to, what happened, and what can be done about it.

import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct IOErrorTests {
        @Test(
            arguments: [
                (ECONNREFUSED, .refused), (ECONNRESET, .reset), (EPIPE, .reset), (ECONNABORTED, .reset), (ETIMEDOUT, .timedOut),
                (ENETUNREACH, .unreachable), (EHOSTUNREACH, .unreachable), (EHOSTDOWN, .unreachable), (ENETDOWN, .unreachable),
                (EADDRINUSE, .addressInUse), (EADDRNOTAVAIL, .addressNotAvailable), (EACCES, .notPermitted), (EPERM, .notPermitted),
                (EMFILE, .resources), (ENFILE, .resources), (ENOMEM, .resources), (ENOBUFS, .resources), (ENOSPC, .resources),
                (ENOENT, .system), (EINVAL, .system), (EBADF, .system),
            ] as [(Int32, IOError.Code)])
        func code_followsFromTheErrorNumber(errno: Int32, code: IOError.Code) {
            let error = IOError(-Int(errno), "read")
            #expect(error.code == code)
            #expect(error.errno?.rawValue == errno)
        }

        @Test func code_isUnsupported_whenADescriptorCannotBeWaitedFor() {
            #expect(IOError(IOCode.unsupported, "wait until readable").code == .unsupported)
        }

        @Test func ownEnds_haveNoErrorNumber() {
            #expect(IOError(IOCode.closed, "read").code == .closed)
            #expect(IOError(IOCode.closed, "read").errno == nil)
        }

        @Test func description_namesOperationSubjectCauseAndProgress() {
            let error = IOError(-Int(ECONNRESET), "write", subject: "127.0.0.1:80", bytesTransferred: 17)
            #expect(error.description == "write 127.0.0.1:80: Connection reset by peer after 17 bytes")
            #expect(IOError(IOCode.closed, "read").description.hasPrefix("read: closed"))
        }

        @Test(
            arguments: [
                (EADDRINUSE, "bind", "choose another port"), (EMFILE, "accept", "ulimit -n"), (EACCES, "bind", "CAP_NET_BIND_SERVICE"),
            ] as [(Int32, String, String)])
        func description_namesARemedy(errno: Int32, operation: String, remedy: String) {
            #expect(IOError(-Int(errno), operation, subject: "127.0.0.1:80").description.contains(remedy))
        }

        @Test func errors_areEqual_whenAllOfThemIs() {
            let error = IOError(-Int(ECONNRESET), "write", bytesTransferred: 17)
            #expect(error == IOError(-Int(ECONNRESET), "write", bytesTransferred: 17))
            #expect(error != IOError(-Int(ECONNRESET), "write", bytesTransferred: 18))
            #expect(error != IOError(-Int(EPIPE), "write", bytesTransferred: 17))
            #expect(IOError.Code.closed.description == "closed")
        }

        @Test func description_saysWhatAUserSees() throws {
            try withNet(.ipv4) { net in
                let listener = try net.listener()
                let port = listener.address.port!
                let inUse = failure { _ = try Listener.bind(to: listener.address) }
                listener.close()
                let refused = failure { _ = try Connection.connect(to: .loopback(port: port)) }
                expect(refused?.description == "connect to 127.0.0.1:\(port): Connection refused", "\(String(describing: refused))")
                expect(
                    inUse?.description.hasPrefix("bind 127.0.0.1:\(port): Address already in use; ") == true, "\(String(describing: inUse))"
                )
            }
        }
    }
}
