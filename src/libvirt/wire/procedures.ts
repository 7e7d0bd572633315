/**
 * The procedures of libvirt's remote program in use, in one table: names, numbers and shapes. Source: libvirt,
 * src/remote/remote_protocol.x (9.0.0). The protocol is append-only: numbers and shapes never change after a procedure
 * was added. Names of arguments and results are libvirt's, in camel case. Knows no connection. libvirt's public headers
 * document the flags and enumerations of the arguments.
 */
import {
	chars,
	i32,
	i64,
	list,
	nothing,
	opaque,
	optional,
	string,
	struct,
	u32,
	u64,
	type XdrCodec,
	type XdrType,
} from './xdr.ts';

/** One procedure: its number, arguments and result. */
export interface Procedure<Args, Result> {
	readonly name: string;
	readonly number: number;
	readonly args: XdrCodec<Args>;
	readonly result: XdrCodec<Result>;
	/**
	 * Whether the call may be repeated if its outcome is unknown: a second call then has the same effect and the same
	 * answer.
	 */
	readonly idempotent: boolean;
}

const uuid = opaque(16);

/** `id` is -1 for a domain that does not run. libvirt finds domains by uuid; name and id are only for its messages. */
const domain = struct({name: string, uuid, id: i32});
const network = struct({name: string, uuid});
const nwfilter = struct({name: string, uuid});
const storagePool = struct({name: string, uuid});
/** `key` is the path for pools of type dir. libvirt finds volumes by pool and name. */
const storageVol = struct({pool: string, name: string, key: string});

export type Domain = XdrType<typeof domain>;
export type Network = XdrType<typeof network>;
export type StoragePool = XdrType<typeof storagePool>;
export type StorageVol = XdrType<typeof storageVol>;

const dhcpLease = struct({
	iface: string,
	/** Seconds since 1970. */
	expirytime: i64,
	/** 0 IPv4, 1 IPv6. */
	type: i32,
	mac: optional(string),
	iaid: optional(string),
	ipaddr: string,
	prefix: u32,
	hostname: optional(string),
	clientid: optional(string),
});

const domainInterface = struct({
	name: string,
	hwaddr: optional(string),
	/** `type` is 0 for IPv4, 1 for IPv6. */
	addrs: list(struct({type: i32, addr: string, prefix: u32}), 2048),
});

export type DhcpLease = XdrType<typeof dhcpLease>;
export type DomainInterface = XdrType<typeof domainInterface>;

/** Calls that only read. */
function reads<Args, Result>(
	number: number,
	args: XdrCodec<Args>,
	result: XdrCodec<Result>,
): Omit<Procedure<Args, Result>, 'name'> {
	return {number, args, result, idempotent: true};
}

/** Calls that change something. */
function changes<Args, Result>(
	number: number,
	args: XdrCodec<Args>,
	result: XdrCodec<Result>,
): Omit<Procedure<Args, Result>, 'name'> {
	return {number, args, result, idempotent: false};
}

const table = {
	// The connection itself.
	/** `types`: 0 none, 1 SASL, 2 polkit. */
	authList: reads(66, nothing, struct({types: list(i32, 20)})),
	authPolkit: reads(70, nothing, struct({complete: i32})),
	/** Only once per connection: a second call ends the connection. `flags` 1 is read-only. */
	connectOpen: changes(1, struct({name: optional(string), flags: u32}), nothing),
	connectClose: changes(2, nothing, nothing),
	connectGetType: reads(3, nothing, struct({type: string})),
	/** `hvVer` and `libVer` are major * 1,000,000 + minor * 1,000 + release. */
	connectGetVersion: reads(4, nothing, struct({hvVer: u64})),
	connectGetHostname: reads(59, nothing, struct({hostname: string})),
	connectGetUri: reads(110, nothing, struct({uri: string})),
	connectGetLibVersion: reads(157, nothing, struct({libVer: u64})),
	/** Querying feature 10 (keepalive) makes the daemon send pings. */
	connectSupportsFeature: reads(60, struct({feature: i32}), struct({supported: i32})),

	// The host.
	/** `memory` in KiB; `mhz` is 0 if unknown. */
	nodeGetInfo: reads(
		6,
		nothing,
		struct({
			model: chars(32),
			memory: u64,
			cpus: i32,
			mhz: i32,
			nodes: i32,
			sockets: i32,
			cores: i32,
			threads: i32,
		}),
	),
	/** In bytes. */
	nodeGetFreeMemory: reads(102, nothing, struct({freeMem: u64})),
	/**
	 * In KiB, by field: `total`, `free`, `buffers`, `cached`. `cellNum` -1 is the whole host; with `nparams` 0, only
	 * the number of fields is returned.
	 */
	nodeGetMemoryStats: reads(
		228,
		struct({nparams: i32, cellNum: i32, flags: u32}),
		struct({params: list(struct({field: string, value: u64}), 1024), nparams: i32}),
	),
	connectGetCapabilities: reads(7, nothing, struct({capabilities: string})),
	connectGetDomainCapabilities: reads(
		342,
		struct({
			emulatorbin: optional(string),
			arch: optional(string),
			machine: optional(string),
			virttype: optional(string),
			flags: u32,
		}),
		struct({capabilities: string}),
	),

	// Domains.
	domainDefineXmlFlags: changes(350, struct({xml: string, flags: u32}), struct({dom: domain})),
	/** Returns the domain with its id. */
	domainCreateWithFlags: changes(196, struct({dom: domain, flags: u32}), struct({dom: domain})),
	domainDestroyFlags: changes(234, struct({dom: domain, flags: u32}), nothing),
	domainUndefineFlags: changes(231, struct({dom: domain, flags: u32}), nothing),
	domainLookupByName: reads(23, struct({name: string}), struct({dom: domain})),
	domainLookupByUuid: reads(24, struct({uuid}), struct({dom: domain})),
	connectListAllDomains: reads(
		273,
		struct({needResults: i32, flags: u32}),
		struct({domains: list(domain, 16_384), ret: u32}),
	),
	domainGetState: reads(212, struct({dom: domain, flags: u32}), struct({state: i32, reason: i32})),
	/** `maxMem` and `memory` in KiB, `cpuTime` in nanoseconds. */
	domainGetInfo: reads(
		16,
		struct({dom: domain}),
		struct({state: i32, maxMem: u64, memory: u64, nrVirtCpu: i32, cpuTime: u64}),
	),
	domainGetXmlDesc: reads(14, struct({dom: domain, flags: u32}), struct({xml: string})),
	/** `source`: 0 leases, 1 guest agent, 2 ARP. */
	domainInterfaceAddresses: reads(
		353,
		struct({dom: domain, source: u32, flags: u32}),
		struct({ifaces: list(domainInterface, 2048)}),
	),
	/** A stream in both directions. */
	domainOpenConsole: changes(201, struct({dom: domain, devName: optional(string), flags: u32}), nothing),

	// Networks.
	networkLookupByName: reads(46, struct({name: string}), struct({net: network})),
	networkGetXmlDesc: reads(43, struct({net: network, flags: u32}), struct({xml: string})),
	networkIsActive: reads(152, struct({net: network}), struct({active: i32})),
	networkGetAutostart: reads(44, struct({net: network}), struct({autostart: i32})),
	networkGetDhcpLeases: reads(
		341,
		struct({net: network, mac: optional(string), needResults: i32, flags: u32}),
		struct({leases: list(dhcpLease, 65_536), ret: u32}),
	),

	/**
	 * The device is found by its MAC; the XML replaces its whole definition. `flags`: 1 is the running domain, 2 its
	 * definition.
	 */
	domainUpdateDeviceFlags: changes(174, struct({dom: domain, xml: string, flags: u32}), nothing),

	// Network filters.
	nwfilterLookupByName: reads(175, struct({name: string}), struct({nwfilter})),
	nwfilterGetXmlDesc: reads(177, struct({nwfilter, flags: u32}), struct({xml: string})),
	/** Replaces a filter with the same name and UUID; ports that use it get the new rules. */
	nwfilterDefineXml: changes(180, struct({xml: string}), struct({nwfilter})),
	nwfilterUndefine: changes(181, struct({nwfilter}), nothing),

	// Storage.
	storagePoolLookupByName: reads(84, struct({name: string}), struct({pool: storagePool})),
	/** Finds active pools only; since libvirt 4.1. No two active pools have the same path. */
	storagePoolLookupByTargetPath: reads(391, struct({path: string}), struct({pool: storagePool})),
	/** Sizes in bytes. `state` 2 is running. */
	storagePoolGetInfo: reads(
		87,
		struct({pool: storagePool}),
		struct({state: i32, capacity: u64, allocation: u64, available: u64}),
	),
	storagePoolGetXmlDesc: reads(88, struct({pool: storagePool, flags: u32}), struct({xml: string})),
	storagePoolGetAutostart: reads(89, struct({pool: storagePool}), struct({autostart: i32})),
	storagePoolIsActive: reads(154, struct({pool: storagePool}), struct({active: i32})),
	storagePoolListAllVolumes: reads(
		282,
		struct({pool: storagePool, needResults: i32, flags: u32}),
		struct({vols: list(storageVol, 16_384), ret: u32}),
	),
	storagePoolRefresh: changes(83, struct({pool: storagePool, flags: u32}), nothing),
	storagePoolCreateXml: changes(76, struct({xml: string, flags: u32}), struct({pool: storagePool})),
	storagePoolDefineXml: changes(77, struct({xml: string, flags: u32}), struct({pool: storagePool})),
	/** Starts a defined pool. */
	storagePoolCreate: changes(78, struct({pool: storagePool, flags: u32}), nothing),
	/** Creates the storage of the pool, such as its directory. */
	storagePoolBuild: changes(79, struct({pool: storagePool, flags: u32}), nothing),
	storagePoolDestroy: changes(80, struct({pool: storagePool}), nothing),
	/** Removes the definition of an inactive pool; its directory stays. */
	storagePoolUndefine: changes(82, struct({pool: storagePool}), nothing),
	storagePoolSetAutostart: changes(90, struct({pool: storagePool, autostart: i32}), nothing),
	storageVolLookupByName: reads(95, struct({pool: storagePool, name: string}), struct({vol: storageVol})),
	storageVolLookupByPath: reads(97, struct({path: string}), struct({vol: storageVol})),
	/** Sizes in bytes. `type` 0 is a file. */
	storageVolGetInfo: reads(98, struct({vol: storageVol}), struct({type: i32, capacity: u64, allocation: u64})),
	/** In the protocol, the path is called `name`, too. */
	storageVolGetPath: reads(100, struct({vol: storageVol}), struct({name: string})),
	storageVolGetXmlDesc: reads(99, struct({vol: storageVol, flags: u32}), struct({xml: string})),
	storageVolCreateXml: changes(93, struct({pool: storagePool, xml: string, flags: u32}), struct({vol: storageVol})),
	storageVolDelete: changes(94, struct({vol: storageVol, flags: u32}), nothing),
	/** Streams; call them with `LibvirtSession.upload` and `.download`. Sizes in bytes; `length` 0 is everything. */
	storageVolUpload: changes(208, struct({vol: storageVol, offset: u64, length: u64, flags: u32}), nothing),
	storageVolDownload: reads(209, struct({vol: storageVol, offset: u64, length: u64, flags: u32}), nothing),
	storageVolResize: changes(260, struct({vol: storageVol, capacity: u64, flags: u32}), nothing),

	// Events: 318 is sent by the daemon, never called. `eventId` 0 is lifecycle; `dom` null is every domain.
	connectDomainEventCallbackRegisterAny: changes(
		316,
		struct({eventId: i32, dom: optional(domain)}),
		struct({callbackId: i32}),
	),
	connectDomainEventCallbackDeregisterAny: changes(317, struct({callbackId: i32}), nothing),
	domainEventCallbackLifecycle: reads(318, nothing, struct({callbackId: i32, dom: domain, event: i32, detail: i32})),
};

type Table = typeof table;

export const procedures = Object.fromEntries(
	Object.entries(table).map(([name, entry]) => [name, {name, ...entry}]),
) as {readonly [Name in keyof Table]: Table[Name] & {readonly name: Name}};
