// SPDX-License-Identifier: Apache-2.0

// Numbers that name no descriptor, above all what a call returned that had failed.

import CFiber
import FiberNet
import Fibers
import Glibc
import SystemPackage
import Testing

extension NetTests {
    struct DescriptorNumberTests {
        /// -1 is what C returns, and -100 names the working directory where a directory is expected; the others would be error numbers, or codes of this library, if they were taken for results.
        @Test(arguments: [-1, -2, -11, -100, -4_095, -10_001, -10_002, -10_003, -10_004, .min] as [Int32])
        func negativeNumber_isRefusedAsOne(number: Int32) throws {
            try inRuntime {
                let descriptor = FileDescriptor(rawValue: number)
                let calls: [() throws -> Void] = [
                    { _ = try DescriptorStream.adopt(descriptor, closing: true) },
                    { _ = try DescriptorStream.adopt(descriptor, closing: false) },
                    { try waitReadable(descriptor) },
                    { try waitWritable(descriptor) },
                    { _ = try Subprocess.spawn(.init("true"), input: .descriptor(descriptor)) },
                    { _ = try Subprocess.spawn(.init("true"), output: .descriptor(descriptor)) },
                    { _ = try Subprocess.spawn(.init("true"), errors: .descriptor(descriptor)) },
                ]
                for call in calls {
                    let error = expect(.system, call)
                    expect(error?.errno == .badFileDescriptor)
                    expect(error?.subject == "descriptor \(number)")
                    expect(error?.description.contains("never negative") == true, "\(String(describing: error))")
                }
            }
        }

        @Test func numberThatIsNotOpen_isRefused_withoutThatRemedy() throws {
            try inRuntime {
                for closing in [false, true] {
                    let error = expect(.system) { _ = try DescriptorStream.adopt(FileDescriptor(rawValue: 1_000_000), closing: closing) }
                    expect(error?.errno == .badFileDescriptor && error?.description.contains("negative") == false)
                }
            }
        }
    }
}
