import {readFile} from 'node:fs/promises';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {secureExecutionSupport, secureExecutionUnavailable} from '../../src/podvm/secure-execution.ts';

const [emulating, protecting] = (await Promise.all(
	['tcg', 'kvm'].map(async name =>
		readFile(new URL(`../fixtures/podvm/domain-capabilities-s390x-${name}.xml`, import.meta.url), 'utf8'),
	),
)) as [string, string];
const libvirt9 = 9_000_000n;
/** As if `s390-pv` were not known to libvirt yet. */
const untold = protecting.replace(/ *<s390-pv .*\n/, '');
const kinds = (...sectypes: readonly string[]): string =>
	`<launchSecurity supported='yes'><enum name='sectype'>${sectypes.map(each => `<value>${each}</value>`).join('')}</enum></launchSecurity></features>`;

for (const [how, capabilities, version] of [
	['says so', protecting, libvirt9],
	[
		'says so as a kind of launch security',
		untold.replace('</features>', kinds('sev', 's390-pv')).replace(/.*unpack.*\n/, ''),
		10_005_000n,
	],
	['says so in both ways', protecting.replace('</features>', kinds('s390-pv')), 12_000_000n],
	['is too old to say so, and the CPU has the facility', untold, 7_006_000n],
	[
		'is too old for any features at all, and the CPU has the facility',
		untold.replace(/<features>.*<\/features>/s, ''),
		7_006_000n,
	],
] as const) {
	test(`a host whose libvirt ${how} can run confidential VMs`, t => {
		t.deepEqual(secureExecutionSupport(capabilities, version), {supported: true});
	});
}

const refusing = protecting.replace("<s390-pv supported='yes'/>", "<s390-pv supported='no'/>");
const withoutUnpack = refusing.replace(/.*unpack.*\n/, '');
for (const [what, capabilities, version, reason, remedy] of [
	['emulates, as recorded', emulating, libvirt9, /no KVM/, /KVM/],
	['emulates with a libvirt that does not tell', emulating.replace(/ *<s390-pv .*\n/, ''), libvirt9, /no KVM/, /KVM/],
	['boots without prot_virt', withoutUnpack, libvirt9, /kernel does not support Secure Execution/, /prot_virt=1/],
	[
		'boots without prot_virt, with a libvirt that does not tell',
		untold.replace(/.*unpack.*\n/, ''),
		libvirt9,
		/kernel does not support Secure Execution/,
		/prot_virt=1/,
	],
	[
		'has the facility as one that is only optional',
		untold.replace("'require' name='unpack", "'optional' name='unpack"),
		libvirt9,
		/kernel does not support Secure Execution/,
		/prot_virt=1/,
	],
	[
		'is a z14',
		withoutUnpack.replace('gen15a-base', 'z14.2-base'),
		libvirt9,
		/too old \(CPU model z14\.2-base\)/,
		/z15/,
	],
	['is a zEC12', withoutUnpack.replace('gen15a-base', 'zEC12'), libvirt9, /too old/, /LinuxONE III/],
	['has an old QEMU', refusing, libvirt9, /QEMU or libvirt/, /QEMU 6\.0/],
	[
		'offers other kinds of launch security only',
		withoutUnpack.replace('</features>', kinds('sev')),
		10_005_000n,
		/kernel/,
		/prot_virt=1/,
	],
	['has a libvirt before 7.6', untold, 7_005_000n, /libvirt is older than 7\.6/, /Update libvirt/],
] as const) {
	test(`a host that ${what} cannot run confidential VMs, and the result has a reason and a remedy`, t => {
		const support = secureExecutionSupport(capabilities, version);
		if (support.supported) {
			t.fail('it can');
			return;
		}

		t.regex(support.reason, reason);
		t.regex(support.remedy, remedy);
		const error = secureExecutionUnavailable(support);
		t.is(error.code, 'failed-precondition');
		t.true(error.message.includes(support.reason) && error.message.includes(support.remedy));
	});
}

test('text that is not XML is an error, not "unsupported"', t => {
	t.is(t.throws(() => secureExecutionSupport('<domainCap', libvirt9), {instanceOf: AdaptorError}).code, 'data-loss');
});
