/** Settings and flags of the commands that ask the daemon of this node. */
import {settings, type SettingsTable} from '../config/settings.ts';

const {socketPath} = settings;

export const statusSettings = {socketPath} as const satisfies SettingsTable;

export const podsFlags = [
	{
		name: 'json',
		isSwitch: true,
		description: 'Prints one JSON document. Its fields are stable (proto/status.proto).',
	},
	{name: 'watch', isSwitch: true, description: 'Prints the table again after each change, until it is interrupted.'},
] as const;

export const consoleFlags = [
	{name: 'f', isSwitch: true, description: 'Waits for more output, until it is interrupted.'},
] as const;

export const removeFlags = [{name: 'yes', isSwitch: true, description: 'Does not ask.'}] as const;
