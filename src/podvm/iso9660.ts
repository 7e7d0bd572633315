/**
 * Writes an ISO 9660 image with files in its root directory: bytes in, bytes out, deterministic. Does not know
 * cloud-init.
 *
 * ISO 9660 (ECMA-119) alone cannot represent a name like `user-data`, so the directory is written twice more: as Rock
 * Ridge entries (IEEE P1282, SUSP P1281) in its records, which Linux prefers, and as a Joliet directory. They share the
 * data of the files. Numbers are written in both byte orders, one after the other ("both-byte orders", ECMA-119 7.2.3
 * and 7.3.3), each explicitly.
 *
 * Sectors: 16 primary descriptor, 17 Joliet descriptor, 18 terminator, 19-22 path tables, then both directories, then
 * the files.
 */

export interface IsoFile {
	/** 1 to 64 characters of `[A-Za-z0-9._-]`, unique. */
	readonly name: string;
	readonly content: Buffer;
}

export interface IsoImage {
	/** At most 16 ASCII characters. The standard does not allow lower case, but all programs accept it. */
	readonly label: string;
	readonly files: readonly IsoFile[];
	/** Stored in seconds, in UTC. */
	readonly createdAt: Date;
}

const sectorSize = 2048;
const systemAreaSectors = 16;
const pathTableSector = 19;
const directorySector = 23;

/** @throws RangeError for a name or a label that cannot be written */
export function isoImage({label, files, createdAt}: IsoImage): Buffer {
	if (!/^[ -~]{1,16}$/.test(label)) {
		throw new RangeError('The label of an ISO image must have 1 to 16 ASCII characters');
	}

	const names = new Set(files.map(({name}) => name));
	if (
		names.size !== files.length ||
		files.some(({name}) => !/^[A-Za-z0-9._-]{1,64}$/.test(name) || /^\.{1,2}$/.test(name))
	) {
		throw new RangeError(
			'Each file of an ISO image must have a unique name of 1 to 64 characters of [A-Za-z0-9._-]',
		);
	}

	// Positions depend on the sizes of the directories, which do not depend on positions: the first pass uses zeros,
	// the second the real positions.
	const placed = files.map(file => ({...file, sector: 0}));
	const sectors = (directory: Directory): number =>
		directoryBytes(directory, placed, {sector: 0, size: 0}, createdAt).length / sectorSize;
	const roots = {
		primary: {sector: directorySector, size: sectors(primary) * sectorSize},
		joliet: {sector: directorySector + sectors(primary), size: sectors(joliet) * sectorSize},
	};
	let next = roots.joliet.sector + sectors(joliet);
	for (const file of placed) {
		// An empty file has no extent; no extent may begin after the end of the volume.
		file.sector = file.content.length === 0 ? 0 : next;
		next += Math.ceil(file.content.length / sectorSize);
	}

	const image = Buffer.alloc(next * sectorSize);
	const put = (bytes: Buffer, sector: number): number => bytes.copy(image, sector * sectorSize);
	put(volumeDescriptor(primary, label, next, roots.primary, pathTableSector, createdAt), systemAreaSectors);
	put(volumeDescriptor(joliet, label, next, roots.joliet, pathTableSector + 2, createdAt), systemAreaSectors + 1);
	put(descriptorHeader(255), systemAreaSectors + 2);
	put(pathTable(roots.primary.sector, 'LE'), pathTableSector);
	put(pathTable(roots.primary.sector, 'BE'), pathTableSector + 1);
	put(pathTable(roots.joliet.sector, 'LE'), pathTableSector + 2);
	put(pathTable(roots.joliet.sector, 'BE'), pathTableSector + 3);
	put(directoryBytes(primary, placed, roots.primary, createdAt), roots.primary.sector);
	put(directoryBytes(joliet, placed, roots.joliet, createdAt), roots.joliet.sector);
	for (const {content, sector} of placed) {
		put(content, sector);
	}

	return image;
}

interface PlacedFile extends IsoFile {
	sector: number;
}

interface Extent {
	readonly sector: number;
	readonly size: number;
}

/** The differences between the two versions of the directory. */
interface Directory {
	readonly descriptorType: 1 | 2;
	readonly escapeSequences: string;
	text(text: string, length: number): Buffer;
	/** In the order of `files`. */
	identifiers(files: readonly IsoFile[]): readonly Buffer[];
	readonly rockRidge: boolean;
}

const primary: Directory = {
	descriptorType: 1,
	escapeSequences: '',
	text: (text, length) => Buffer.from(text.padEnd(length), 'latin1'),
	identifiers: files => shortNames(files.map(({name}) => name)).map(name => Buffer.from(`${name}.;1`, 'latin1')),
	rockRidge: true,
};

/** UCS-2 level 3 (Joliet Specification, "Escape Sequences for UCS-2"). */
const joliet: Directory = {
	descriptorType: 2,
	escapeSequences: '%/E',
	text: (text, length) => ucs2(text.padEnd(length / 2).slice(0, length / 2)),
	identifiers: files => files.map(({name}) => ucs2(name)),
	rockRidge: false,
};

function ucs2(text: string): Buffer {
	return Buffer.from(text, 'utf16le').swap16();
}

/** Names of at most 8 characters of `[A-Z0-9_]`, for readers without both extensions; duplicates get a number. */
function shortNames(names: readonly string[]): readonly string[] {
	const taken = new Set<string>();
	return names.map(name => {
		const wanted = name
			.toUpperCase()
			.replaceAll(/[^A-Z0-9_]/g, '_')
			.slice(0, 8);
		let short = wanted;
		for (let number = 1; taken.has(short); number++) {
			short = `${wanted.slice(0, 8 - String(number).length)}${number}`;
		}

		taken.add(short);
		return short;
	});
}

function descriptorHeader(type: number): Buffer {
	const descriptor = Buffer.alloc(sectorSize);
	descriptor.writeUInt8(type, 0);
	descriptor.write('CD001', 1, 'latin1');
	descriptor.writeUInt8(1, 6);
	return descriptor;
}

/** ECMA-119, 8.4 and 8.5; offsets are the byte positions of the standard minus one. */
function volumeDescriptor(
	directory: Directory,
	label: string,
	volumeSectors: number,
	root: Extent,
	firstPathTable: number,
	createdAt: Date,
): Buffer {
	const descriptor = descriptorHeader(directory.descriptorType);
	directory.text('', 32).copy(descriptor, 8);
	directory.text(label, 32).copy(descriptor, 40);
	writeBoth32(descriptor, volumeSectors, 80);
	descriptor.write(directory.escapeSequences, 88, 'latin1');
	writeBoth16(descriptor, 1, 120);
	writeBoth16(descriptor, 1, 124);
	writeBoth16(descriptor, sectorSize, 128);
	writeBoth32(descriptor, pathTable(root.sector, 'LE').length, 132);
	descriptor.writeUInt32LE(firstPathTable, 140);
	descriptor.writeUInt32BE(firstPathTable + 1, 148);
	directoryRecord({identifier: Buffer.of(0), extent: root, isDirectory: true, createdAt}).copy(descriptor, 156);
	// Volume set, publisher, data preparer, application; then copyright, abstract and bibliographic file: all
	// unspecified.
	for (const [offset, length] of [
		[190, 128],
		[318, 128],
		[446, 128],
		[574, 128],
		[702, 37],
		[739, 37],
		[776, 37],
	] as const) {
		directory.text('', length).copy(descriptor, offset);
	}

	const [created, unspecified] = [longDate(createdAt), Buffer.from(`${'0'.repeat(16)}\0`, 'latin1')];
	for (const [offset, date] of [
		[813, created],
		[830, created],
		[847, unspecified],
		[864, created],
	] as const) {
		date.copy(descriptor, offset);
	}

	descriptor.writeUInt8(1, 881);
	return descriptor;
}

/** The root directory alone, ECMA-119, 9.4. */
function pathTable(rootSector: number, order: 'LE' | 'BE'): Buffer {
	const table = Buffer.alloc(10);
	table.writeUInt8(1, 0);
	if (order === 'LE') {
		table.writeUInt32LE(rootSector, 2);
		table.writeUInt16LE(1, 6);
	} else {
		table.writeUInt32BE(rootSector, 2);
		table.writeUInt16BE(1, 6);
	}

	return table;
}

/**
 * The records of the root directory, sorted by identifier, none across the border of a sector (ECMA-119, 6.8.1.1 and
 * 9.3).
 */
function directoryBytes(directory: Directory, files: readonly PlacedFile[], root: Extent, createdAt: Date): Buffer {
	const identifiers = directory.identifiers(files);
	const entries = files
		.map((file, index) => ({file, identifier: identifiers[index] ?? Buffer.alloc(0)}))
		.sort((a, b) => Buffer.compare(a.identifier, b.identifier));
	const rootMode = 0o040_555;
	const records = [
		directoryRecord({
			identifier: Buffer.of(0),
			extent: root,
			isDirectory: true,
			createdAt,
			...(directory.rockRidge
				? {systemUse: Buffer.concat([sharingProtocol, extensionReference, posixAttributes(rootMode, 2)])}
				: {}),
		}),
		directoryRecord({
			identifier: Buffer.of(1),
			extent: root,
			isDirectory: true,
			createdAt,
			...(directory.rockRidge ? {systemUse: posixAttributes(rootMode, 2)} : {}),
		}),
		...entries.map(({file, identifier}) =>
			directoryRecord({
				identifier,
				extent: {sector: file.sector, size: file.content.length},
				isDirectory: false,
				createdAt,
				// The files contain keys: only root may read them.
				...(directory.rockRidge
					? {systemUse: Buffer.concat([posixAttributes(0o100_400, 1), alternateName(file.name)])}
					: {}),
			}),
		),
	];
	const sectors: Buffer[][] = [[]];
	let used = 0;
	for (const record of records) {
		if (used + record.length > sectorSize) {
			sectors.push([]);
			used = 0;
		}

		sectors.at(-1)?.push(record);
		used += record.length;
	}

	return Buffer.concat(sectors.map(sector => Buffer.concat(sector, sectorSize)));
}

interface DirectoryRecord {
	readonly identifier: Buffer;
	readonly extent: Extent;
	readonly isDirectory: boolean;
	readonly createdAt: Date;
	readonly systemUse?: Buffer;
}

/** ECMA-119, 9.1. */
function directoryRecord({
	identifier,
	extent,
	isDirectory,
	createdAt,
	systemUse = Buffer.alloc(0),
}: DirectoryRecord): Buffer {
	const systemUseOffset = evenUp(33 + identifier.length);
	const record = Buffer.alloc(evenUp(systemUseOffset + systemUse.length));
	record.writeUInt8(record.length, 0);
	writeBoth32(record, extent.sector, 2);
	writeBoth32(record, extent.size, 10);
	const date = [
		createdAt.getUTCFullYear() - 1900,
		createdAt.getUTCMonth() + 1,
		createdAt.getUTCDate(),
		createdAt.getUTCHours(),
		createdAt.getUTCMinutes(),
		createdAt.getUTCSeconds(),
		0,
	];
	Buffer.from(date).copy(record, 18);
	record.writeUInt8(isDirectory ? 0x02 : 0, 25);
	writeBoth16(record, 1, 28);
	record.writeUInt8(identifier.length, 32);
	identifier.copy(record, 33);
	systemUse.copy(record, systemUseOffset);
	return record;
}

function evenUp(length: number): number {
	return length + (length % 2);
}

/** SUSP `SP`: declares in the record of the root directory that such entries are used. */
const sharingProtocol = Buffer.from([0x53, 0x50, 7, 1, 0xbe, 0xef, 0]);

/** SUSP `ER`: identifies Rock Ridge. Without its optional descriptions it needs no continuation area. */
const extensionReference = Buffer.concat([
	Buffer.from([0x45, 0x52, 18, 1, 10, 0, 0, 1]),
	Buffer.from('RRIP_1991A', 'latin1'),
]);

/** Rock Ridge `PX`: mode, links, uid 0, gid 0. */
function posixAttributes(mode: number, links: number): Buffer {
	const entry = Buffer.alloc(36);
	Buffer.from([0x50, 0x58, entry.length, 1]).copy(entry);
	writeBoth32(entry, mode, 4);
	writeBoth32(entry, links, 12);
	return entry;
}

/** Rock Ridge `NM`. */
function alternateName(name: string): Buffer {
	const text = Buffer.from(name, 'latin1');
	return Buffer.concat([Buffer.from([0x4e, 0x4d, 5 + text.length, 1, 0]), text]);
}

/** ECMA-119, 8.4.26.1: digits to the hundredth of a second, then the offset from UTC. */
function longDate(date: Date): Buffer {
	return Buffer.from(`${date.toISOString().replaceAll(/\D/g, '').slice(0, 14)}00\0`, 'latin1');
}

function writeBoth16(bytes: Buffer, value: number, offset: number): void {
	bytes.writeUInt16LE(value, offset);
	bytes.writeUInt16BE(value, offset + 2);
}

function writeBoth32(bytes: Buffer, value: number, offset: number): void {
	bytes.writeUInt32LE(value, offset);
	bytes.writeUInt32BE(value, offset + 4);
}
