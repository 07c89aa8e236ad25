// SPDX-License-Identifier: Apache-2.0

// The guides of the documentation show what is compiled and run, and nothing else.
//
// For each guide X.md there is Guides/X.swift, where what stands between `// snippet.show` and `// snippet.hide` is one of its blocks of Swift, part of a test that
// checks what it does.

import Glibc
import Testing

private let guides = "Sources/Fibers/Fibers.docc/"
private let sources = "Tests/FiberNetTests/Guides/"

extension NetTests {
    struct GuideTests {
        @Test(arguments: try names(in: guides, ".md")) func guide_showsWhatIsTested(name: String) throws {
            let shown = try blocks(of: guides + name + ".md", from: "```swift", to: "```")
            let tested = try blocks(of: sources + name + ".swift", from: "// snippet.show", to: "// snippet.hide")
            #expect(!shown.isEmpty)
            for block in shown where !tested.contains(block) {
                Issue.record("\(name).md shows what Guides/\(name).swift has not:\n\(block)")
            }
            for block in tested where !shown.contains(block) {
                Issue.record("Guides/\(name).swift has what \(name).md does not show:\n\(block)")
            }
            #expect(shown.count == tested.count)
        }

        @Test func test_belongsToAGuide() throws {
            #expect(try names(in: sources, ".swift") == names(in: guides, ".md"))
        }

        /// By any other name a block would not be found here.
        @Test(arguments: try names(in: guides, ".md")) func fence_isOfSwiftOrOfNothing(name: String) throws {
            let fences = try text(of: guides + name + ".md").split(separator: "\n").filter { $0.contains("```") }
            #expect(fences.allSatisfy { $0 == "```swift" || $0 == "```" }, "\(fences)")
            #expect(fences.count.isMultiple(of: 2))
        }

        @Test func landingPage_namesEveryPublicSymbol() throws {
            let page = try text(of: guides + "Fibers.md")
            let topics = try #require(page.firstRange(of: "## Topics")).upperBound
            var symbols: [String] = []
            for file in try swiftFiles(below: "Sources/Fibers/") {
                for line in try text(of: file).split(separator: "\n") {
                    if let symbol = publicSymbol(declaredBy: line) { symbols.append(symbol) }
                }
            }
            #expect(symbols.count > 10)
            for symbol in symbols {
                #expect(page[topics...].contains("- ``\(symbol)``") || page[topics...].contains("- ``\(symbol)("), "\(symbol) is missing")
            }
        }
    }
}

/// The paths of the Swift files in a folder and in those below it.
private func swiftFiles(below folder: String) throws -> [String] {
    try names(in: folder, ".swift").map { "\(folder)\($0).swift" }
        + names(in: folder, "").filter { !$0.contains(".") }.flatMap { try swiftFiles(below: "\(folder)\($0)/") }
}

/// The names of a folder's files, without an ending that they share, in order.
private func names(in folder: String, _ ending: String) throws -> [String] {
    let directory = try #require(opendir(sourceRoot + folder), "\(folder) cannot be read")
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        if !name.hasPrefix("."), name.hasSuffix(ending) { names.append(String(name.dropLast(ending.count))) }
    }
    return names.sorted()
}

/// What stands between lines that say so, without the indentation that its lines share.
private func blocks(of path: String, from begin: String, to end: String) throws -> [String] {
    var blocks: [String] = []
    var block: [Substring]?
    for line in try text(of: path).split(separator: "\n", omittingEmptySubsequences: false) {
        let words = line.drop { $0 == " " }
        if let lines = block, words == end {
            let indentation = lines.filter { !$0.isEmpty }.map { $0.prefix { $0 == " " }.count }.min() ?? 0
            blocks.append(lines.map { $0.dropFirst(indentation) }.joined(separator: "\n"))
            block = nil
        } else if block != nil {
            try #require(words != begin, "a block of \(path) begins inside another")
            block?.append(line)
        } else if words == begin {
            block = []
        }
    }
    try #require(block == nil, "the last block of \(path) does not end")
    return blocks
}

/// The name of what a line declares, if it is public and at the outermost level. A name that begins with `_` is public for inlining alone, and documentation leaves it out.
private func publicSymbol(declaredBy line: Substring) -> String? {
    guard line.hasPrefix("public ") else { return nil }
    let words = line.split { !$0.isLetter && !$0.isNumber && $0 != "_" }
    let kinds: Set<Substring> = ["struct", "class", "enum", "protocol", "func", "typealias", "actor", "let", "var"]
    guard let kind = words.firstIndex(where: { kinds.contains($0) }), !words[kind + 1].hasPrefix("_") else { return nil }
    return String(words[kind + 1])
}
