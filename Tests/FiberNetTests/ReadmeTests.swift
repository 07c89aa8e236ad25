// SPDX-License-Identifier: Apache-2.0

import Glibc
import Testing

/// The folder of the package, as it was when the tests were compiled.
let sourceRoot = String(#filePath.dropLast("Tests/FiberNetTests/ReadmeTests.swift".count))

func text(of path: String) throws -> String {
    let file = try #require(fopen(sourceRoot + path, "r"), "\(path) cannot be read")
    defer { fclose(file) }
    var bytes: [UInt8] = []
    while case let byte = fgetc(file), byte != EOF { bytes.append(UInt8(byte)) }
    return String(decoding: bytes, as: UTF8.self)
}

/// What the README shows is what is built and tested.
@Test func readme_showsTheEchoServerAsItIs() throws {
    let readme = try text(of: "README.md")
    let begin = try #require(readme.range(of: "```swift\n")).upperBound
    let end = try #require(readme[begin...].range(of: "```\n")).lowerBound
    // Without the line that names the license.
    let program = try text(of: "Examples/Echo/Echo.swift").split(separator: "\n\n", maxSplits: 1)
    #expect(program.count == 2 && readme[begin..<end] == program[1])
}

extension String {
    fileprivate func range(of words: String) -> Range<Index>? { self[...].range(of: words) }
}

extension Substring {
    fileprivate func range(of words: String) -> Range<Index>? { firstRange(of: words) }
}
